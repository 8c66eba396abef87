-- The metrics of a step; after the end nothing changes.
-- KEYS: progress, run   ARGV: field, metrics
if redis.call('EXISTS', KEYS[2]) == 0 or redis.call('HEXISTS', KEYS[2], 'end') == 1 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
