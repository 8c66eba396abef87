-- A run that waited for capacity is admitted. The next one is asked for once it can have started.
-- KEYS: list, time of the last admission   ARGV: job, seconds
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 and redis.call('ZCARD', KEYS[1]) > 0 then
  redis.call('SET', KEYS[2], now(), 'EX', ARGV[2])
end
