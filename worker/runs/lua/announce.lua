-- The next poll of a step gets the next generation; an older copy of this poll can no longer go on.
-- KEYS: run   ARGV: field, generation of the poll that is ending
local newest = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
local following = tonumber(ARGV[2]) + 1
if following > newest then redis.call('HSET', KEYS[1], ARGV[1], following) end
return math.max(following, newest)
