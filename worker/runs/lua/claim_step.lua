-- A step begins: only if the run lives, is not further on, and nobody holds the step.
-- KEYS: run, record, lock, polls   ARGV: step, position, token, lock ms, generation, redelivered, moves the run on,
--   the step's own queue, fields of the newest and of the claimed generation
if redis.call('EXISTS', KEYS[1]) == 0 then return {'unknown', 0, 0} end
if redis.call('HEXISTS', KEYS[1], 'end') == 1 then return {'run_ended', 0, 0} end
local position = tonumber(ARGV[2])
if tonumber(redis.call('HGET', KEYS[1], 'position')) > position then return {'superseded', 0, 0} end
local status, newest = claim_generation(KEYS[4], ARGV[9], ARGV[10], tonumber(ARGV[5]), ARGV[6] == '1')
if status ~= 'claimed' then return {status, 0, newest} end
-- A client whose answer got lost asks again with the same token.
if not redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4]) and redis.call('GET', KEYS[3]) ~= ARGV[3] then
  return {'locked', 0, 0}
end
if ARGV[7] == '0' then return {'claimed', 1, newest} end
redis.call('HSET', KEYS[1], 'position', position, 'step', ARGV[1], 'step_queue', ARGV[8])
redis.call('HSET', KEYS[2], 'step', ARGV[1], 'updated', redis.call('TIME')[1])
return {'claimed', redis.call('HINCRBY', KEYS[1], 'begun:' .. ARGV[1], 1), newest}
