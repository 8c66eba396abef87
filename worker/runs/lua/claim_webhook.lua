-- A worker is about to send the end of a run to the webhook: one at a time, and after the backend has it.
-- KEYS: run, record, lock, webhooks, what stands for run and record of a rejected message   ARGV: job, token, lock ms
-- Returns 'nothing' (to be sent), 'early', 'locked', or 'claimed' and the time, the seconds for which the run is kept still,
-- its message, its end and its public record.
if not redis.call('ZSCORE', KEYS[4], ARGV[1]) then return {'nothing'} end
local run, record = KEYS[1], KEYS[2]
if not run_exists(run) then run, record = KEYS[5], KEYS[5] end
if not run_ended(run) then
  redis.call('ZREM', KEYS[4], ARGV[1])
  return {'nothing'}
end
if run == KEYS[1] and not run_reported(run) then
  enter_webhook(KEYS[4], ARGV[1])
  return {'early'}
end
-- A client whose answer got lost asks again with the same token.
if not redis.call('SET', KEYS[3], ARGV[2], 'NX', 'PX', ARGV[3]) and redis.call('GET', KEYS[3]) ~= ARGV[2] then
  return {'locked'}
end
redis.call('ZADD', KEYS[4], now() + ARGV[3] / 1000, ARGV[1])
keep_webhooks(KEYS[4])
local message, run_end = unpack(redis.call('HMGET', run, RUN.message, RUN.ended))
return {'claimed', tostring(now()), tostring(redis.call('PTTL', run) / 1000), message, run_end, redis.call('HGETALL', record)}
