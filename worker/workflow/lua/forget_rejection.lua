-- The last message of a rejected job was dropped, so that no replay can open the job.
-- KEYS: jobs   ARGV: job
if redis.call('HGET', KEYS[1], ARGV[1]) ~= 'refused' then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[1])
