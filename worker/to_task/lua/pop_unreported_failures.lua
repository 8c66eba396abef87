-- The first failure records of the run that were not returned before. `told` counts them; older workers read it.
-- KEYS: run, task index, failures   ARGV: maximum number of records for a run
if not run_open(KEYS[1]) then return {} end
local reported = tonumber(redis.call('HGET', KEYS[2], 'told') or '0')
local failures = redis.call('LRANGE', KEYS[3], reported, ARGV[1] - 1)
if #failures > 0 then redis.call('HSET', KEYS[2], 'told', reported + #failures) end
return failures
