-- The jobs whose report has not been sent in time: each is given to one caller, which is to send it at once.
-- KEYS: outbox   ARGV: most jobs
local time = now()
local jobs = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', time, 'LIMIT', 0, ARGV[1])
for _, job in ipairs(jobs) do redis.call('ZADD', KEYS[1], time + REPORT_LEASE, job) end
return jobs
