-- A step is repeated as a poll of the next generation: that is a heartbeat, the poll's message is published, and the
-- lock is released, all at once. Where the queues are not in this Redis, the message is published after this, so that a
-- worker that dies in between leaves a message of the older generation, which publishes the newer one.
-- KEYS: run, lock, polls, heartbeats, overdue counts, then what `publish_messages` reads
-- ARGV: token, field of the deliveries, field of the newest generation, generation of the poll that is ending, the
--   heartbeat's member, seconds until it is overdue, then what `publish_messages` reads: a message of the generation
--   after the ending one
-- Returns the next generation.
record_heartbeat(KEYS[4], KEYS[5], ARGV[5], ARGV[6])
local ending = tonumber(ARGV[4])
local newest = tonumber(redis.call('HGET', KEYS[3], ARGV[3]) or '0')
local generation = math.max(ending + 1, newest)
if newest <= ending then
  -- A newer generation was announced with its message, also when the answer to this very call was lost.
  publish_messages(6, 7)
  -- Nothing is stored any more when the keys are expiring.
  if not run_reported(KEYS[1]) then redis.call('HSET', KEYS[3], ARGV[3], generation) end
end
end_delivery(KEYS[3], ARGV[2], ARGV[1])
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return generation
