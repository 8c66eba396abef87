-- A snapshot reached the backend. Returns 1 when something newer is to be sent.
-- KEYS: run   ARGV: version of the snapshot
if not run_exists(KEYS[1]) then return 0 end
redis.call('HSET', KEYS[1], RUN.version_sent, ARGV[1])
if (redis.call('HGET', KEYS[1], RUN.version) or '0') ~= ARGV[1] or run_ended(KEYS[1]) then
  redis.call('HSET', KEYS[1], RUN.report_scheduled_at, now_seconds())
  return 1
end
redis.call('HDEL', KEYS[1], RUN.report_scheduled_at)
return 0
