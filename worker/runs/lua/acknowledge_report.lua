-- A snapshot reached the backend. Returns 1 when something newer waits to be sent.
-- KEYS: run   ARGV: version of the snapshot
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'version_sent', ARGV[1])
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] or redis.call('HEXISTS', KEYS[1], 'end') == 1 then
  redis.call('HSET', KEYS[1], 'report_scheduled', redis.call('TIME')[1])
  return 1
end
redis.call('HDEL', KEYS[1], 'report_scheduled')
return 0
