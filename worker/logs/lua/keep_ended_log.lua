-- A log has ended: count what it takes. One that is written again is counted anew at its next end.
-- KEYS: ended logs, kept logs, sizes   ARGV: job, bytes, name of the field with the total
redis.call('ZREM', KEYS[1], ARGV[1])
local counted = tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or 0) or 0
redis.call('ZADD', KEYS[2], 'NX', now_seconds(), ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
return add_to_total(KEYS[3], ARGV[3], ARGV[2] - counted)
