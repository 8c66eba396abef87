-- A client whose answer got lost asks again with the same token, and has the lock.
-- KEYS: lock   ARGV: token, ms
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.call('GET', KEYS[1]) == ARGV[1] then return 1 end
return 0
