-- The job is RUNNING, unless it has ended.
-- KEYS: run, record   ARGV: status
if not run_open(KEYS[1]) then return 0 end
redis.call('HSET', KEYS[2], 'status', ARGV[1], 'updated', now_seconds())
return 1
