-- List the tags whose time of redelivery has passed by this server's clock.
-- KEYS: unacked, redelivery. ARGV: the most tags to look at.
local time = redis.call('TIME')
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', time[1] + time[2] / 1000000, 'LIMIT', 0, ARGV[1])
local overdue = {}
for _, tag in ipairs(tags) do
  if redis.call('HEXISTS', KEYS[1], tag) == 1 then
    overdue[#overdue + 1] = tag
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return overdue
