-- One more attempt at each of these tasks; returns how many there were of each. Nothing after the run's end.
-- KEYS: run, attempts   ARGV: position...
if not run_open(KEYS[1]) then return {} end
local counts = {}
for i, position in ipairs(ARGV) do counts[i] = redis.call('HINCRBY', KEYS[2], position, 1) end
return counts
