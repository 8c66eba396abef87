-- Set a field of a hash, or delete it where the value is ''; nothing after the run's end.
-- KEYS: run, hash   ARGV: field, value
if not run_open(KEYS[1]) then return 0 end
if ARGV[2] == '' then redis.call('HDEL', KEYS[2], ARGV[1]) else redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
return 1
