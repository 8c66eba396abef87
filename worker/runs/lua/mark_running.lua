-- The job is RUNNING, unless it has ended.
-- KEYS: run, record   ARGV: status
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[1], 'end') == 1 then return 0 end
redis.call('HSET', KEYS[2], 'status', ARGV[1], 'updated', redis.call('TIME')[1])
return 1
