-- A run waits; the first starts the poll, and one of all takes the dispatch upon itself.
-- KEYS: room, waiters
-- ARGV: job, timeout in seconds, seen before, token of a claim, seconds an unsent claim holds, expiry in seconds,
--   fields of a dispatch
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local first = redis.call('ZADD', KEYS[2], 'NX', now + tonumber(ARGV[2]), ARGV[1])
local job = redis.call('HGET', KEYS[1], 'job')
if first == 1 and redis.call('ZCARD', KEYS[2]) == 1 then
  -- A dispatch of an earlier wave: its job may have ended while nobody looked.
  if job then redis.call('HSET', KEYS[1], 'doubtful', 1) end
  -- One that failed when all had left is none of this wave; what may have come of it all the same has its time.
  if (redis.call('HGET', KEYS[1], 'failure') or '') ~= '' then
    if job or redis.call('HGET', KEYS[1], 'unclear') == '1' then
      redis.call('HSET', KEYS[1], 'failure', '', 'unclear', 0)
    else
      redis.call('HDEL', KEYS[1], unpack(ARGV, 7))
    end
  end
end
local token = redis.call('HGET', KEYS[1], 'token')
local free = not token
if token and redis.call('HEXISTS', KEYS[1], 'sent') == 0 then
  -- Claimed, but its owner came back or died before anything was sent.
  local claimed = tonumber(redis.call('HGET', KEYS[1], 'claimed'))
  free = redis.call('HGET', KEYS[1], 'by') == ARGV[1] or now - claimed > tonumber(ARGV[5])
end
if free then
  redis.call('HSET', KEYS[1], 'token', ARGV[4], 'by', ARGV[1], 'claimed', now)
end
local started = 0
if ARGV[3] == '1' or redis.call('HGET', KEYS[1], 'polling') ~= '1' then
  -- Who joins again may have died before its poll was published; the generation lets only the newest live.
  redis.call('HSET', KEYS[1], 'polling', 1)
  started = redis.call('HINCRBY', KEYS[1], 'generation', 1)
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return {started, free and 1 or 0, first, job or ''}
