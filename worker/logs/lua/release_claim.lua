-- Releases a claim: the subscription is removed when its log is closed, else any relay may claim it at once.
-- KEYS: open, owners   ARGV: subscription, fencing token, '1' when the log is closed
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[3] == '1' then redis.call('ZREM', KEYS[1], ARGV[1]) else redis.call('ZADD', KEYS[1], 'XX', 0, ARGV[1]) end
return 1
