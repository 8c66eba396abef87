-- A step is repeated as a poll of the next generation: its message is published after this, so that a worker that dies in
-- between leaves a message of the older generation, which publishes the newer one. That is a heartbeat, and the lock is
-- released.
-- KEYS: run, lock, polls, heartbeats, overdue counts
-- ARGV: token, field of the deliveries, field of the newest generation, generation of the poll that is ending, the
--   heartbeat's member, seconds until it is overdue
-- Returns the next generation.
record_heartbeat(KEYS[4], KEYS[5], ARGV[5], ARGV[6])
local generation = tonumber(ARGV[4])
if run_reported(KEYS[1]) then
  -- Nothing is stored any more, because the keys are expiring.
  generation = math.max(generation + 1, tonumber(redis.call('HGET', KEYS[3], ARGV[3]) or '0'))
else
  generation = advance_generation(KEYS[3], ARGV[3], generation)
end
end_delivery(KEYS[3], ARGV[2], ARGV[1])
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return generation
