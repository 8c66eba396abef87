-- Write fields of a dispatch, unless it was cleared or another run has claimed it.
-- KEYS: waiting list   ARGV: stored fields of a dispatch as JSON, token, field, value, field, value, ...
local fields = cjson.decode(ARGV[1])
if redis.call('HGET', KEYS[1], fields.token) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 3))
return 1
