-- Runs go on: their messages are published and they leave the list, at once.
-- KEYS: waiters, then the queue's list for each message
-- ARGV: number of jobs, the jobs, then RPUSH or LPUSH and the message for each message
local jobs = tonumber(ARGV[1])
for index = 2, #KEYS do
  local argument = jobs + 2 * index - 2
  redis.call(ARGV[argument], KEYS[index], ARGV[argument + 1])
end
redis.call('ZREM', KEYS[1], unpack(ARGV, 2, jobs + 1))
