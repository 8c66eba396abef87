-- KEYS: heartbeats, overdue counts   ARGV: member, seconds until it is overdue, '', or XX to write only where there is a
--   heartbeat, or NX to write only where there is none
local due = now_seconds() + ARGV[2]
if ARGV[3] ~= '' then return redis.call('ZADD', KEYS[1], ARGV[3], due, ARGV[1]) end
redis.call('ZADD', KEYS[1], due, ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
