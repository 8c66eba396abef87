-- The dispatch is over: the next one may claim anew.
-- KEYS: room   ARGV: token, fields of a dispatch
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], unpack(ARGV, 2))
return 1
