-- A report reached the backend, which has the status RUNNING since, if it was a PATCH: its version is given then.
-- KEYS: run, messages, lock, outbox, patched   ARGV: job, token, version or '', seconds between two PATCHes
-- Returns 1 when there is more to send.
if redis.call('GET', KEYS[3]) == ARGV[2] then redis.call('DEL', KEYS[3]) end
if not run_exists(KEYS[1]) then return 0 end
-- The time again, because the client may have succeeded late, after a retry.
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[5], 1, 'PX', ARGV[4] * 1000)
  redis.call('HSET', KEYS[1], RUN.running_sent, 1)
  -- Nothing is kept of what is reported: a run that waits is to be small.
  redis.call('HDEL', KEYS[1], RUN.version_sent)
  if redis.call('HGET', KEYS[1], RUN.version) == ARGV[3] then redis.call('HDEL', KEYS[1], RUN.version) end
end
redis.call('HDEL', KEYS[1], RUN.report_scheduled_at)
-- The end is in the outbox already, to be sent at once.
if run_ended(KEYS[1]) then return 1 end
if has_changes(KEYS[1]) or redis.call('LLEN', KEYS[2]) > 0 then
  redis.call('ZADD', KEYS[4], now() + ARGV[4] + REPORT_LEASE, ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[4], ARGV[1])
return 0
