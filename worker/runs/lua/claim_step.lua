-- A step begins, if the run is open and has not passed the step, its generation is the newest, and its lock is free.
-- KEYS: run, record, lock, polls   ARGV: step, position, token, lock ms, generation, redelivered, whether it moves
--   the run on, the step's own queue, fields of the newest and of the claimed generation and of the deliveries
-- Returns a status, how often the step was claimed, the newest generation, and how many deliveries died.
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
if ARGV[7] == '0' then return {'claimed', 1, newest, died} end
-- What is known of the step before is of no use any more: a run that waits is to be small.
local before = redis.call('HGET', KEYS[1], RUN.step)
if before ~= ARGV[1] then redis.call('HDEL', KEYS[1], RUN.begun_prefix .. (before or ''), RUN.step_queue) end
redis.call('HSET', KEYS[1], RUN.position, position, RUN.step, ARGV[1])
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], RUN.step_queue, ARGV[8]) end
redis.call('HSET', KEYS[2], 'step', ARGV[1], 'updated', now_seconds())
return {'claimed', redis.call('HINCRBY', KEYS[1], RUN.begun_prefix .. ARGV[1], 1), newest, died}
