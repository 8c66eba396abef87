-- A chunk is done. Returns 1 when all are: to the one who found it and to everybody who asks later.
-- KEYS: run, task index, chunks, done chunks, open   ARGV: chunk
if not run_open(KEYS[1]) then return 0 end
local chunks = tonumber(redis.call('HGET', KEYS[2], 'chunks') or '0')
if tonumber(ARGV[1]) < chunks then
  redis.call('SADD', KEYS[4], ARGV[1])
  redis.call('ZREM', KEYS[5], ARGV[1])
  redis.call('HDEL', KEYS[3], ARGV[1])
end
return redis.call('SCARD', KEYS[4]) == chunks and 1 or 0
