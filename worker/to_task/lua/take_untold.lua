-- Failure records that nobody has told yet, the first ones of the run; they count as told then.
-- KEYS: run, catalogue, failures   ARGV: most that are told of a run
if not run_open(KEYS[1]) then return {} end
local told = tonumber(redis.call('HGET', KEYS[2], 'told') or '0')
local failures = redis.call('LRANGE', KEYS[3], told, ARGV[1] - 1)
if #failures > 0 then redis.call('HSET', KEYS[2], 'told', told + #failures) end
return failures
