-- The end is written once; the first wins. A step that the run has passed meanwhile ends nothing.
-- KEYS: run, record   ARGV: end, status, error, position of the step that ends the run or ''
if not run_open(KEYS[1]) then return 0 end
local position = tonumber(ARGV[4])
if position and tonumber(redis.call('HGET', KEYS[1], RUN.position)) > position then return 0 end
redis.call('HSET', KEYS[1], RUN.ended, ARGV[1])
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'error', ARGV[3], 'updated', now_seconds())
return 1
