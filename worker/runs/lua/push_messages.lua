-- Messages for the backend are kept only while somebody will send them: after that they would never expire.
-- KEYS: run, messages   ARGV: RPUSH or LPUSH, messages
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[1], 'reported') == 1 then return 0 end
redis.call(ARGV[1], KEYS[2], unpack(ARGV, 2))
return 1
