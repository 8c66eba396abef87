-- Forget the runs that ended the longest ago, as far as they are too old. Returns how many these were.
-- KEYS: ended runs   ARGV: time (Redis's clock) since which a run must have ended to be kept, most runs to forget
local prefix = string.match(KEYS[1], '^(.*):ended$')
local jobs = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[1], 'LIMIT', 0, ARGV[2])
for _, job in ipairs(jobs) do forget_ended_run(prefix .. ':jobs:{' .. job .. '}') end
return #jobs
