-- The end is written once; the first wins. A step that the run has passed meanwhile ends nothing. The run leaves the
-- list in which it waits, and is overdue when its end is not reported in time.
-- KEYS: run, record, heartbeats
-- ARGV: end, status, error, position of the step that ends the run or '', job, member of the heartbeats,
--   seconds until it is overdue
if not run_open(KEYS[1]) then return 0 end
local position = tonumber(ARGV[4])
if position and tonumber(redis.call('HGET', KEYS[1], RUN.position)) > position then return 0 end
redis.call('HSET', KEYS[1], RUN.ended, ARGV[1])
redis.call('HSET', KEYS[2], 'status', ARGV[2], 'error', ARGV[3], 'updated', now_seconds())
redis.call('ZADD', KEYS[3], now_seconds() + ARGV[7], ARGV[6])
local list = redis.call('HGET', KEYS[1], RUN.waits_in)
if list then redis.call('ZREM', list, ARGV[5]) end
return 1
