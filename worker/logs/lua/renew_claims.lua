-- Renews the claims of a relay. Returns the subscriptions that other relays hold now.
-- KEYS: open, owners   ARGV: seconds until the claims expire, then subscription and fencing token in turn
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local lost = {}
for index = 2, #ARGV, 2 do
  local subscription = ARGV[index]
  if redis.call('HGET', KEYS[2], subscription) == ARGV[index + 1] then
    redis.call('ZADD', KEYS[1], 'XX', now + ARGV[1], subscription)
  else
    lost[#lost + 1] = subscription
  end
end
return lost
