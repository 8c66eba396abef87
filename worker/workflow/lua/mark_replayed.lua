-- The next message of a rejected job opens the job again. Returns 0 when the job is not rejected.
-- KEYS: jobs   ARGV: job
local state = redis.call('HGET', KEYS[1], ARGV[1])
if state ~= 'refused' and state ~= 'replayed' then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], 'replayed')
return 1
