-- The end is written once; the first wins.
-- KEYS: run, record   ARGV: end, status, error
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[1], 'end', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'error', ARGV[3], 'updated', redis.call('TIME')[1])
return 1
