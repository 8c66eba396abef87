-- Give up the watch, as its consumer stops: one of those that wait looks and then watches.
-- KEYS: watcher, tokens. ARGV: consumer.
local holder = redis.call('GET', KEYS[1])
if not holder or holder == ARGV[1] then
  redis.call('DEL', KEYS[1])
  if redis.call('LLEN', KEYS[2]) == 0 then
    redis.call('LPUSH', KEYS[2], '')
    redis.call('EXPIRE', KEYS[2], 10)
  end
end
return true
