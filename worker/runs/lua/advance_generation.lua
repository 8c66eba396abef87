-- After the end was reported nothing is stored, because the keys are expiring.
-- KEYS: run, polls   ARGV: field of the newest generation, generation of the poll that is ending
local generation = tonumber(ARGV[2])
if run_reported(KEYS[1]) then
  return math.max(generation + 1, tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0'))
end
return advance_generation(KEYS[2], ARGV[1], generation)
