-- Messages for the backend are kept only while a report will send them: after that they would never expire.
-- KEYS: run, messages   ARGV: RPUSH or LPUSH, messages
if not run_exists(KEYS[1]) or run_reported(KEYS[1]) then return 0 end
redis.call(ARGV[1], KEYS[2], unpack(ARGV, 2))
return 1
