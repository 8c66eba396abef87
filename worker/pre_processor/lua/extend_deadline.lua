-- A deployment's message of this pre-processor was read: it may be what came of the dispatch.
-- KEYS: waiting list   ARGV: stored fields of a dispatch as JSON
local fields = cjson.decode(ARGV[1])
if redis.call('HEXISTS', KEYS[1], fields.sent_at) == 0 then return 0 end
if redis.call('HEXISTS', KEYS[1], fields.job) == 1 then return 0 end
redis.call('HSET', KEYS[1], fields.sent_at, now())
return 1
