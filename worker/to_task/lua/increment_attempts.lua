-- One more of each of these, such as attempts at a task; returns how many there were. Nothing after the run's end.
-- KEYS: run, hash   ARGV: field...
if not run_open(KEYS[1]) then return {} end
local counts = {}
for i, position in ipairs(ARGV) do counts[i] = redis.call('HINCRBY', KEYS[2], position, 1) end
return counts
