-- Set the time of redelivery of unacknowledged messages anew. KEYS: redelivery. ARGV: seconds from now, tags.
local time = redis.call('TIME')
local redelivery = time[1] + time[2] / 1000000 + ARGV[1]
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], 'XX', redelivery, ARGV[i])
end
return true
