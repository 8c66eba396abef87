-- Who should have given a sign of life by now. Each is handed out once, and later each time:
-- a queue that is merely long must not be filled with copies.
-- KEYS: live, overdue counts   ARGV: patience in seconds, most
local now = tonumber(redis.call('TIME')[1])
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do
  local times = redis.call('HINCRBY', KEYS[2], member, 1)
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]) * 2 ^ math.min(times, 6), member)
end
return members
