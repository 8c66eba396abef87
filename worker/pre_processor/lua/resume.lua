-- Runs go on: their messages are published and they leave the list, at once.
-- KEYS: waiters, then what `publish_messages` reads
-- ARGV: number of jobs, the jobs, then what `publish_messages` reads
local jobs = tonumber(ARGV[1])
publish_messages(2, jobs + 2)
redis.call('ZREM', KEYS[1], unpack(ARGV, 2, jobs + 1))
