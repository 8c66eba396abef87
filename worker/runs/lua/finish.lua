-- The end is written once; the first wins. A step that the run has passed meanwhile ends nothing.
-- KEYS: run, record   ARGV: end, status, error, position of the step that ends the run or ''
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local position = tonumber(ARGV[4])
if position and tonumber(redis.call('HGET', KEYS[1], 'position')) > position then return 0 end
if redis.call('HSETNX', KEYS[1], 'end', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'error', ARGV[3], 'updated', redis.call('TIME')[1])
return 1
