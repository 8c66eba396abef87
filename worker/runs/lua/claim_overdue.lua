-- The members whose heartbeat is overdue. Each is given to one caller, and later each time: a queue that is merely
-- long must not be filled with copies.
-- KEYS: heartbeats, overdue counts   ARGV: grace in seconds, most members
local now = tonumber(now_seconds())
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do
  local count = redis.call('HINCRBY', KEYS[2], member, 1)
  redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]) * 2 ^ math.min(count, 6), member)
end
return members
