-- Fill the window and return the chunks whose messages are to be sent: the new ones, those that were handed
-- out a while ago to somebody who died before sending, or all open ones. Scores of `open` are the time of the claim,
-- a larger number once published, infinity once begun.
-- KEYS: run, task index, open   ARGV: chunks that wait in the queue, begun chunks for which one more waits, most
--   chunks in flight, seconds after which an unsent one is handed out again, the score of a published one to hand out
--   all of them as published or '', chunk that has begun or ''
if not run_open(KEYS[1]) then return {} end
local now = tonumber(now_seconds())
if ARGV[6] ~= '' then redis.call('ZADD', KEYS[3], 'XX', 'inf', ARGV[6]) end
local numbers
local score = ARGV[5] ~= '' and ARGV[5] or now
if ARGV[5] ~= '' then
  numbers = redis.call('ZRANGE', KEYS[3], 0, -1)
else
  numbers = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - tonumber(ARGV[4]))
end
local chunks = tonumber(redis.call('HGET', KEYS[2], 'chunks') or '0')
local following = tonumber(redis.call('HGET', KEYS[2], 'following') or '0')
for _, number in ipairs(numbers) do redis.call('ZADD', KEYS[3], score, number) end
local open = redis.call('ZCARD', KEYS[3])
local waiting = redis.call('ZCOUNT', KEYS[3], '-inf', '(inf')
local wanted = math.max(tonumber(ARGV[1]), math.floor((open - waiting) / ARGV[2]))
while following < chunks and waiting < wanted and open < tonumber(ARGV[3]) do
  redis.call('ZADD', KEYS[3], score, following)
  numbers[#numbers + 1] = tostring(following)
  following, waiting, open = following + 1, waiting + 1, open + 1
end
redis.call('HSET', KEYS[2], 'following', following)
return numbers
