-- Bookings that nobody follows (never taken, or whose relay gave no sign of life): each for one relay, for a while.
-- Every claim gets a number; of two for the same booking the higher is the one that holds.
-- KEYS: open, owners, last claim   ARGV: seconds, most
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local taken = {}
for _, booking in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local claim = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[2], booking, claim)
  redis.call('ZADD', KEYS[1], now + ARGV[1], booking)
  taken[#taken + 1] = {booking, tostring(claim)}
end
return taken
