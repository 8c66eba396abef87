-- KEYS: heartbeats, overdue counts   ARGV: member, seconds until it is overdue, '', or XX to write only where there is a
--   heartbeat, NX to write only where there is none, GT to leave a later one
if ARGV[3] ~= '' then return redis.call('ZADD', KEYS[1], ARGV[3], now_seconds() + ARGV[2], ARGV[1]) end
record_heartbeat(KEYS[1], KEYS[2], ARGV[1], ARGV[2])
