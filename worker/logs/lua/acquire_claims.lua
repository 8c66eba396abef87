-- Claims subscriptions that no relay holds: those that are new and those whose claim has expired.
-- Each claim gets a fencing token; of two claims on one subscription the higher token is valid.
-- KEYS: open, owners, last claim   ARGV: seconds until the claims expire, maximum number of claims
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000
local claims = {}
for _, subscription in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local fencing_token = redis.call('INCR', KEYS[3])
  redis.call('HSET', KEYS[2], subscription, fencing_token)
  redis.call('ZADD', KEYS[1], now + ARGV[1], subscription)
  claims[#claims + 1] = {subscription, tostring(fencing_token)}
end
return claims
