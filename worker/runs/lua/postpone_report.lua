-- The backend did not take a report: the next attempt is made after some seconds, as long as which the end of a run needs
-- no heartbeat.
-- KEYS: run, outbox, heartbeats   ARGV: job, seconds, heartbeat's member, seconds until it is overdue
redis.call('ZADD', KEYS[2], 'XX', now() + ARGV[2] + REPORT_LEASE, ARGV[1])
if run_ended(KEYS[1]) then redis.call('ZADD', KEYS[3], now_seconds() + ARGV[2] + ARGV[4], ARGV[3]) end
