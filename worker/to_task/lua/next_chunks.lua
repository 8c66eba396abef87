-- Fill the window and return the chunks whose messages are to be sent: the new ones, those that were handed
-- out a while ago to somebody who died before sending, or all open ones.
-- KEYS: run, task index, open   ARGV: window, seconds after which an unsent one is handed out again, all
if not run_open(KEYS[1]) then return {} end
local now = tonumber(now_seconds())
local numbers
if ARGV[3] == '1' then
  numbers = redis.call('ZRANGE', KEYS[3], 0, -1)
else
  numbers = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - tonumber(ARGV[2]))
end
local chunks = tonumber(redis.call('HGET', KEYS[2], 'chunks') or '0')
local following = tonumber(redis.call('HGET', KEYS[2], 'following') or '0')
for _, number in ipairs(numbers) do redis.call('ZADD', KEYS[3], now, number) end
while following < chunks and redis.call('ZCARD', KEYS[3]) < tonumber(ARGV[1]) do
  redis.call('ZADD', KEYS[3], now, following)
  numbers[#numbers + 1] = tostring(following)
  following = following + 1
end
redis.call('HSET', KEYS[2], 'following', following)
return numbers
