-- Leave a token that wakes one relay, unless there is one. It says nothing of which log: the relay looks.
-- KEYS: token
if redis.call('LLEN', KEYS[1]) == 0 then
  redis.call('LPUSH', KEYS[1], '')
  redis.call('EXPIRE', KEYS[1], 10)
end
