-- A run waits for capacity, or does so still; it keeps its place by the time at which it came. Those before it are taken
-- off whose runs are lost: they have no heartbeat (an ended run leaves the list by itself), or an overdue one.
-- KEYS: list, time of the last admission, run, public record of the run, heartbeats
-- ARGV: job, when it came or '', begins the heartbeat member of a run, what listeners read about the wait, expiry in
--   seconds, most that are counted before it
-- Returns when it came, its position from 1, 1 while the one admitted last may not have started yet.
if not run_open(KEYS[3]) then return {'0', 0, 0} end
local now = now()
redis.call('ZADD', KEYS[1], 'NX', ARGV[2] ~= '' and ARGV[2] or string.format('%.6f', now), ARGV[1])
local first = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
while first ~= ARGV[1] do
  local due = redis.call('ZSCORE', KEYS[5], ARGV[3] .. first)
  if due and tonumber(due) > now then break end
  redis.call('ZREM', KEYS[1], first)
  first = redis.call('ZRANGE', KEYS[1], 0, 0)[1]
end
join_waitlist(KEYS[3], KEYS[1], KEYS[4], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[5])
local came = redis.call('ZSCORE', KEYS[1], ARGV[1])
-- Not ZRANK, which users of Redis with least rights do not have: so many are counted at most.
local before = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. came, 'LIMIT', 0, ARGV[6])
return {came, #before + 1, redis.call('EXISTS', KEYS[2])}
