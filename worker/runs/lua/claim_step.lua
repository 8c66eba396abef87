-- A step begins: only if the run lives, is not further on, and nobody holds the step.
-- KEYS: run, record, lock, polls   ARGV: step, position, token, lock ms, generation, redelivered, moves the run on,
--   the step's own queue
if redis.call('EXISTS', KEYS[1]) == 0 then return {'unknown', 0, 0} end
if redis.call('HEXISTS', KEYS[1], 'end') == 1 then return {'over', 0, 0} end
local at = tonumber(redis.call('HGET', KEYS[1], 'position'))
local position = tonumber(ARGV[2])
if at > position then return {'passed', 0, 0} end
local generation = tonumber(ARGV[5])
local newest = tonumber(redis.call('HGET', KEYS[4], 'generation:' .. ARGV[1]) or '0')
if generation < newest then
  -- The newer poll was announced before it was published: who died in between is delivered again and
  -- publishes it; any other copy of an old poll dies.
  local begun = tonumber(redis.call('HGET', KEYS[4], 'polled:' .. ARGV[1]) or '-1')
  if ARGV[6] == '1' and begun < newest then return {'republish', 0, newest} end
  return {'passed', 0, 0}
end
-- A client whose answer got lost asks again with the same token.
if not redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4]) and redis.call('GET', KEYS[3]) ~= ARGV[3] then
  return {'locked', 0, 0}
end
if generation > 0 then redis.call('HSET', KEYS[4], 'polled:' .. ARGV[1], generation) end
if ARGV[7] == '0' then return {'begun', 1, generation} end
redis.call('HSET', KEYS[1], 'position', position, 'step', ARGV[1], 'step_queue', ARGV[8])
redis.call('HSET', KEYS[2], 'step', ARGV[1], 'updated', redis.call('TIME')[1])
return {'begun', redis.call('HINCRBY', KEYS[1], 'begun:' .. ARGV[1], 1), generation}
