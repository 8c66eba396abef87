-- Say that this process sends requests to an application, and count those that did within the last seconds.
-- KEYS: processes   ARGV: process, seconds
local now = tonumber(now_seconds())
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('EXPIRE', KEYS[1], ARGV[2])
return redis.call('ZCARD', KEYS[1])
