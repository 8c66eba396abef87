-- A new poll is due now, if any run waits; it ends the older one. Returns its generation, 0 when no run waits.
-- KEYS: waiting list, waiters, names of the lists in which runs wait   ARGV: name of the list
if redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('HDEL', KEYS[1], 'polling')
  redis.call('SREM', KEYS[3], ARGV[1])
  return 0
end
redis.call('HSET', KEYS[1], 'polling', 1)
return advance_generation(KEYS[1], 'generation')
