-- Keep a message until its time has come: a new one, or one that was fetched.
-- KEYS: the queue's delayed messages, the time at which an earlier one was last added to those of any queue, and
--       for a fetched message unacked and redelivery.
-- ARGV: seconds from now, or with '1' behind it the time itself; the list, a line feed and the message, or for a
--       fetched message its tag.
-- Returns whether the message is not to be handled now: 0 when its time has come.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local due = ARGV[2] == '1' and tonumber(ARGV[1]) or now + ARGV[1]
local member = ARGV[3]
if #KEYS > 2 then
  if due <= now then
    return 0
  end
  member = redis.call('HGET', KEYS[3], ARGV[3])
  if not member then
    return 1  -- it was redelivered
  end
  redis.call('HDEL', KEYS[3], ARGV[3])
  redis.call('ZREM', KEYS[4], ARGV[3])
end
redis.call('ZADD', KEYS[1], due, member)
if redis.call('ZRANGE', KEYS[1], 0, 0)[1] == member then
  redis.call('SET', KEYS[2], now, 'EX', 3600)
end
return 1
