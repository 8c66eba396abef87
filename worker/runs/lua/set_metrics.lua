-- Replace the metrics of a step; after the end nothing changes. Returns 1 to the caller that is to report it.
-- KEYS: progress, run, outbox   ARGV: field, metrics, job, channel, event, seconds until the report
if not run_open(KEYS[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return schedule_report(KEYS[2], KEYS[3], ARGV[3], ARGV[6])
