-- A step begins, if the run is open and has not passed the step, its generation is the newest, and its lock is free.
-- That is a heartbeat.
-- KEYS: run, record, lock, polls, heartbeats, overdue counts
-- ARGV: step, position, token, lock ms, generation, redelivered, whether it moves the run on, the step's own queue,
--   fields of the newest and of the claimed generation and of the deliveries, the heartbeat's member, seconds until it is
--   overdue
-- Returns a status, whether the step was claimed before, the newest generation, how many deliveries died, and the run's hash.
if not run_exists(KEYS[1]) then return {'unknown', 0, 0, 0} end
if run_ended(KEYS[1]) then return {'run_ended', 0, 0, 0} end
local position = tonumber(ARGV[2])
if tonumber(redis.call('HGET', KEYS[1], RUN.position)) > position then return {'superseded', 0, 0, 0} end
local status, newest = claim_generation(KEYS[4], ARGV[9], ARGV[10], tonumber(ARGV[5]), ARGV[6] == '1')
if status ~= 'claimed' then return {status, 0, newest, 0} end
-- A client whose answer got lost asks again with the same token.
if not redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4]) and redis.call('GET', KEYS[3]) ~= ARGV[3] then
  return {'locked', 0, 0, 0}
end
local died = begin_delivery(KEYS[4], ARGV[11], newest, ARGV[3])
record_heartbeat(KEYS[5], KEYS[6], ARGV[12], ARGV[13])
local is_retry = 0
if ARGV[7] == '1' then
  -- What is known of the step before is of no use any more: a run that waits is to be small.
  local before, times = redis.call('HGET', KEYS[1], RUN.step), {}
  if before ~= ARGV[1] then
    redis.call('HDEL', KEYS[1], RUN.begun_prefix .. (before or ''), RUN.step_queue)
    redis.call('HDEL', KEYS[2], 'waiting_for')
    times = step_times(KEYS[2], before, ARGV[1])
  end
  redis.call('HSET', KEYS[1], RUN.position, position, RUN.step, ARGV[1])
  if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], RUN.step_queue, ARGV[8]) end
  local updated = now_seconds()
  redis.call('HSET', KEYS[2], 'step', ARGV[1], 'updated', updated, unpack(times))
  if before ~= ARGV[1] then publish_change(KEYS[2], {step = ARGV[1], updated = updated, waiting_for = ''}) end
  redis.call('HINCRBY', KEYS[1], RUN.begun_prefix .. ARGV[1], 1)
  is_retry = before == ARGV[1] and 1 or 0
end
return {'claimed', is_retry, newest, died, redis.call('HGETALL', KEYS[1])}
