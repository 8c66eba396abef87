-- The end of a run was sent to the webhook, which has it, or is sent it again after some seconds.
-- KEYS: lock, webhooks   ARGV: job, token, seconds until the next attempt or ''
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
else
  redis.call('ZADD', KEYS[2], 'XX', now() + ARGV[3] + REPORT_LEASE, ARGV[1])
end
if redis.call('GET', KEYS[1]) == ARGV[2] then redis.call('DEL', KEYS[1]) end
