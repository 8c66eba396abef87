-- A step ends, and its run goes on: that is a heartbeat, the messages that follow are published, and the lock is
-- released, all at once. Without the lock nothing is done: it is unknown what another delivery does, or this very call
-- has done it and its answer was lost.
-- KEYS: lock, polls, heartbeats, overdue counts, run, record, then what `publish_messages` reads
-- ARGV: token, field of the deliveries, the heartbeat's member, seconds until it is overdue, the step at which the run
--   stands from now on without a message of its own, or '', its position and its own queue, then what
--   `publish_messages` reads
-- Returns 1 when that was done.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
record_heartbeat(KEYS[3], KEYS[4], ARGV[3], ARGV[4])
-- What follows may have been published before this, as on another broker, and have brought the run further already.
if ARGV[5] ~= '' and run_open(KEYS[5]) and tonumber(redis.call('HGET', KEYS[5], RUN.position)) <= tonumber(ARGV[6]) then
  move_on(KEYS[5], KEYS[6], ARGV[5], ARGV[6], ARGV[7])
end
publish_messages(7, 8)
end_delivery(KEYS[2], ARGV[2], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
