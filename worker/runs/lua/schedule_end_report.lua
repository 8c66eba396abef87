-- The end of a run is to be reported. Returns 1 to the caller that is to do that at once: the first one. Later ones do
-- not hasten a report that waits for the backend. Once the backend has the end there are no more heartbeats.
-- KEYS: run, outbox, heartbeats, overdue counts, webhooks
-- ARGV: job, heartbeat's member, seconds until it is overdue, '1' where ends go to a webhook, too
if not run_exists(KEYS[1]) or run_reported(KEYS[1]) then
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('HDEL', KEYS[4], ARGV[2])
  return 0
end
if redis.call('HSETNX', KEYS[1], RUN.end_sent, 1) == 0 then return enter_outbox(KEYS[2], ARGV[1], 0) end
redis.call('ZADD', KEYS[2], now() + REPORT_LEASE, ARGV[1])
record_heartbeat(KEYS[3], KEYS[4], ARGV[2], ARGV[3])
if ARGV[4] == '1' then enter_webhook(KEYS[5], ARGV[1]) end
return 1
