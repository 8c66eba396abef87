-- The dispatch is over: a run that joins may claim a new one.
-- KEYS: waiting list   ARGV: stored fields of a dispatch as JSON, token
local fields = cjson.decode(ARGV[1])
if redis.call('HGET', KEYS[1], fields.token) ~= ARGV[2] then return 0 end
for _, field in pairs(fields) do redis.call('HDEL', KEYS[1], field) end
return 1
