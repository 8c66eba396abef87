-- A step ends, and its run goes on: that is a heartbeat, the message of the next step is published, and the lock is
-- released, all at once. Without the lock nothing is done: it is unknown what another delivery does, or this very call
-- has done it and its answer was lost.
-- KEYS: lock, polls, heartbeats, overdue counts, then what `publish_messages` reads
-- ARGV: token, field of the deliveries, the heartbeat's member, seconds until it is overdue, then what
--   `publish_messages` reads
-- Returns 1 when that was done.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
record_heartbeat(KEYS[3], KEYS[4], ARGV[3], ARGV[4])
publish_messages(5, 5)
end_delivery(KEYS[2], ARGV[2], ARGV[1])
redis.call('DEL', KEYS[1])
return 1
