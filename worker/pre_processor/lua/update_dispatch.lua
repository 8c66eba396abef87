-- Write down more about a dispatch, unless it was forgotten or taken over.
-- KEYS: room   ARGV: token, field, value, field, value, ...
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return 1
