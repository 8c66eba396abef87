-- A poll begins, if it is the newest; a copy of an older one dies.
-- KEYS: room   ARGV: generation, redelivered
local newest = tonumber(redis.call('HGET', KEYS[1], 'generation') or '0')
local generation = tonumber(ARGV[1])
if redis.call('HGET', KEYS[1], 'polling') ~= '1' or generation > newest then return {'stale', newest} end
if generation < newest then
  -- The next poll was announced before it was published: who died in between publishes it on its redelivery.
  local polled = tonumber(redis.call('HGET', KEYS[1], 'polled') or '0')
  if ARGV[2] == '1' and polled < newest then return {'republish', newest} end
  return {'stale', newest}
end
redis.call('HSET', KEYS[1], 'polled', generation)
return {'begun', newest}
