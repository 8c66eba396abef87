-- A sign of life of a relay. Returns the bookings that have gone to others.
-- KEYS: open, owners   ARGV: seconds, then booking and claim by turns
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local lost = {}
for index = 2, #ARGV, 2 do
  local booking = ARGV[index]
  if redis.call('HGET', KEYS[2], booking) == ARGV[index + 1] then
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], booking)
  else
    lost[#lost + 1] = booking
  end
end
return lost
