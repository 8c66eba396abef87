-- Something changed that the backend should hear. Returns 1 to whoever is to publish the report.
-- KEYS: run   ARGV: patience in seconds before a report that never came is published again
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[1], 'reported') == 1 then return 0 end
redis.call('HINCRBY', KEYS[1], 'version', 1)
local now = tonumber(redis.call('TIME')[1])
local scheduled = tonumber(redis.call('HGET', KEYS[1], 'report_scheduled') or '0')
if scheduled + tonumber(ARGV[1]) > now then return 0 end
redis.call('HSET', KEYS[1], 'report_scheduled', now)
return 1
