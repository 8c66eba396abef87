-- Replace the metrics of a step; after the end nothing changes.
-- KEYS: progress, run   ARGV: field, metrics
if not run_open(KEYS[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
