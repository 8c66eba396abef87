-- A poll is over: the last waiter's leaving ends the polling, in one go with the look whether anybody came.
-- KEYS: waiting list, waiters, names of the lists in which runs wait   ARGV: generation, expiry in seconds, name
local generation = tonumber(ARGV[1])
if generation < tonumber(redis.call('HGET', KEYS[1], 'generation') or '0') then return {'superseded', 0} end
if redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('HDEL', KEYS[1], 'polling')
  redis.call('SREM', KEYS[3], ARGV[3])
  return {'ended', 0}
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {'again', advance_generation(KEYS[1], 'generation', generation)}
