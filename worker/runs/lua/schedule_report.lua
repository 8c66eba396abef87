-- Something changed that is to be reported. Returns 1 to the caller that is to publish the report.
-- KEYS: run   ARGV: seconds after which a report that never came is published again
if not run_exists(KEYS[1]) or run_reported(KEYS[1]) then return 0 end
redis.call('HINCRBY', KEYS[1], RUN.version, 1)
local now = tonumber(now_seconds())
local scheduled_at = tonumber(redis.call('HGET', KEYS[1], RUN.report_scheduled_at) or '0')
if scheduled_at + tonumber(ARGV[1]) > now then return 0 end
redis.call('HSET', KEYS[1], RUN.report_scheduled_at, now)
return 1
