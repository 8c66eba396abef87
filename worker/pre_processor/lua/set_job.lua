-- A deployment of this pre-processor has begun: its job is that of a dispatch whose reply was lost.
-- KEYS: waiting list   ARGV: stored fields of a dispatch as JSON, job
local fields = cjson.decode(ARGV[1])
if redis.call('HEXISTS', KEYS[1], fields.sent_at) == 0 then return 0 end
if redis.call('HEXISTS', KEYS[1], fields.job) == 1 then return 0 end
redis.call('HSET', KEYS[1], fields.job, ARGV[2], fields.job_unverified, 0)
return 1
