-- Keep a rejected message, once for each delivery of it. A replayed job whose message is rejected again counts as
-- rejected.
-- KEYS: stream, seen (or the stream again), jobs   ARGV: seconds, job (or empty), then the entry
if KEYS[2] ~= KEYS[1] and not redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[1]) then return 0 end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
-- For whoever shows them: on the channel of the changes of all runs, see `publish_change`.
local prefix = string.match(KEYS[1], '^(.*):dead_letters$')
redis.call('PUBLISH', prefix .. ':changes', cjson.encode({dead_letter = id}))
if redis.call('HGET', KEYS[3], ARGV[2]) == 'replayed' then redis.call('HSET', KEYS[3], ARGV[2], 'refused') end
return 1
