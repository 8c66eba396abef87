-- A deployment of this room's pre-processor has begun: it is the job of a dispatch whose answer nobody got.
-- KEYS: room   ARGV: job
if redis.call('HEXISTS', KEYS[1], 'sent') == 0 or redis.call('HEXISTS', KEYS[1], 'job') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'job', ARGV[1], 'doubtful', 0)
return 1
