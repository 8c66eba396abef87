-- Pop the next message of the first list that has one and record it as unacknowledged, in one atomic step.
-- KEYS: unacked, redelivery, then the lists in the order in which to look.
-- ARGV: tag, seconds until redelivery, then '1' for every list whose messages are acknowledged.
for i = 3, #KEYS do
  local message = redis.call('RPOP', KEYS[i])
  if message then
    if ARGV[i] == '1' then
      local time = redis.call('TIME')
      redis.call('HSET', KEYS[1], ARGV[1], KEYS[i] .. '\n' .. message)
      redis.call('ZADD', KEYS[2], time[1] + time[2] / 1000000 + ARGV[2], ARGV[1])
    end
    return {KEYS[i], message}
  end
end
return false
