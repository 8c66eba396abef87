-- Count a run among those that share the requests of an application.
-- KEYS: requests that the application takes, runs that share them
-- ARGV: job of the run, seconds after which a run counts no more, seconds for which the number is known from now on
-- Returns the requests that it takes, 0 where that is not known, and how many runs there are.
local taken = tonumber(redis.call('GET', KEYS[1]) or '')
if not taken or taken < 1 then return {0, 1} end
local now = tonumber(now_seconds())
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {taken, redis.call('ZCARD', KEYS[2])}
