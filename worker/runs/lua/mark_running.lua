-- The job is RUNNING, unless it has ended. Returns 1 to the caller that is to report it.
-- KEYS: run, record, outbox   ARGV: status, job, channel, event
if not run_open(KEYS[1]) then return 0 end
-- Not when it was accepted: most late copies of a message find that the job has ended, and start nothing.
forget_earlier_run(KEYS[2])
local updated = now_seconds()
redis.call('HSET', KEYS[2], 'status', ARGV[1], 'updated', updated)
publish_change(KEYS[2], {status = ARGV[1], updated = updated})
redis.call('PUBLISH', ARGV[3], ARGV[4])
return schedule_report(KEYS[1], KEYS[3], ARGV[2], 0)
