-- Move what is due to its list, pop the next message of the first list that has one and record it as
-- unacknowledged; and decide which consumer watches the queues and which one looks next.
-- A watcher hears from Redis when a list changes. It keeps the watch for a message after which it is free for
-- another one at once; otherwise a token wakes one of those that wait for it, which looks and then watches.
-- KEYS: unacked, redelivery, redelivering (who looks for overdue messages), watcher, tokens,
--       the delayed messages of each queue, then the lists in the order in which to look.
-- ARGV: tag, seconds until redelivery, consumer ('' for one that only looks), milliseconds of its watch, '1' when
--       it may keep the watch, number of queues, then '1' for every list whose messages are acknowledged.
-- Returns: list and message (nil without one), whether there are more, whether the consumer watches, seconds until
--          the next delayed message is due (nil without one), whether messages are overdue, the time.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local watcher, tokens = KEYS[4], KEYS[5]
local lists = 6 + ARGV[6]

local earliest = false
for i = 6, lists - 1 do
  local first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')[2]
  if first and tonumber(first) <= now then
    local due = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now, 'LIMIT', 0, 100)
    for j = #due, 1, -1 do  -- the earliest is fetched first
      local line = string.find(due[j], '\n', 1, true)
      redis.call('RPUSH', string.sub(due[j], 1, line - 1), string.sub(due[j], line + 1))
    end
    redis.call('ZREM', KEYS[i], unpack(due))
    first = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')[2]
  end
  if first and (not earliest or tonumber(first) < earliest) then
    earliest = tonumber(first)
  end
end

local list, message = false, false
local filled = redis.call('EXISTS', unpack(KEYS, lists))
for i = lists, filled > 0 and #KEYS or 0 do
  message = redis.call('RPOP', KEYS[i])
  if message then
    list = KEYS[i]
    filled = filled - 1 + redis.call('EXISTS', list)
    if ARGV[6 + i - lists + 1] == '1' then
      redis.call('HSET', KEYS[1], ARGV[1], list .. '\n' .. message)
      redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
    end
    break
  end
end

local watches = false
if ARGV[3] ~= '' then
  local holder = redis.call('GET', watcher)
  if not holder or holder == ARGV[3] then
    watches = not message or (filled == 0 and ARGV[5] == '1')
    if watches then
      redis.call('SET', watcher, ARGV[3], 'PX', ARGV[4])
      if not holder then
        redis.call('DEL', tokens)
      end
    else
      if holder then
        redis.call('DEL', watcher)
      end
      if redis.call('LLEN', tokens) == 0 then
        redis.call('LPUSH', tokens, '')
        redis.call('EXPIRE', tokens, 10)
      end
    end
  end
end

local overdue = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
local redelivers = overdue and tonumber(overdue) <= now and redis.call('SET', KEYS[3], '', 'NX', 'PX', 1000)
return {
  list, message, filled > 0 and 1 or 0, watches and 1 or 0,
  earliest and tostring(math.max(0, earliest - now)), redelivers and 1 or 0, string.format('%.6f', now)
}
