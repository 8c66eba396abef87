-- The next poll of a step gets the next generation; an older copy of this poll can no longer go on.
-- KEYS: run, polls   ARGV: field, generation of the poll that is ending
local newest = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
local following = tonumber(ARGV[2]) + 1
-- Nothing after the end was reported: the keys are expiring.
if following > newest and redis.call('HEXISTS', KEYS[1], 'reported') == 0 then
  redis.call('HSET', KEYS[2], ARGV[1], following)
end
return math.max(following, newest)
