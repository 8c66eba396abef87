-- Put unacknowledged messages back on their lists. A tag that is gone was requeued or acknowledged by another
-- process: nothing is done for it.
-- KEYS: unacked, redelivery.
-- ARGV: RPUSH (fetched next) or LPUSH (fetched last), '1' for overdue messages only, then tag, text, ...
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local requeued = 0
for i = 3, #ARGV, 2 do
  local entry = redis.call('HGET', KEYS[1], ARGV[i])
  local redelivery = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if entry and (ARGV[2] ~= '1' or not redelivery or tonumber(redelivery) <= now) then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call(ARGV[1], string.sub(entry, 1, string.find(entry, '\n', 1, true) - 1), ARGV[i + 1])
    requeued = requeued + 1
  end
end
return requeued
