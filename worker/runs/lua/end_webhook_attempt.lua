-- The end of a run was sent to the webhook, which has it, or is sent it again after some seconds. What another attempt has
-- claimed meanwhile is left to that one: it may be the end of another run of the job.
-- KEYS: lock, webhooks   ARGV: job, token, seconds until the next attempt or ''
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[2] then return end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], 'XX', now() + ARGV[3] + REPORT_LEASE, ARGV[1])
end
redis.call('DEL', KEYS[1])
