-- A poll is over: the last waiter's leaving ends the polling, in one go with the look whether anybody came.
-- KEYS: room, waiters   ARGV: generation, expiry in seconds
if redis.call('HGET', KEYS[1], 'generation') ~= ARGV[1] then return {'superseded', 0} end
if redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('HDEL', KEYS[1], 'polling')
  return {'ended', 0}
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return {'again', redis.call('HINCRBY', KEYS[1], 'generation', 1)}
