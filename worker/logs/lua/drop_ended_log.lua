-- Remove the entries of a log that has ended, except for its end marker, by which a late follower knows that it is over.
-- KEYS: history, state, kept logs, sizes   ARGV: job, name of the field with the total
-- Returns the total of what is kept.
redis.call('ZREM', KEYS[3], ARGV[1])
local counted = tonumber(redis.call('HGET', KEYS[4], ARGV[1]) or 0) or 0
redis.call('HDEL', KEYS[4], ARGV[1])
local total = add_to_total(KEYS[4], ARGV[2], -counted)
-- One that is written again is counted at its next end.
local seq, reopened, over = unpack(redis.call('HMGET', KEYS[2], 'seq', 'reopened', 'over'))
local left = redis.call('PTTL', KEYS[1])
if not over or left < 0 then return total end
local id = seq .. '-' .. (reopened or '0')
local marker = redis.call('XRANGE', KEYS[1], id, id)[1]
redis.call('UNLINK', KEYS[1])
if marker then
  redis.call('XADD', KEYS[1], id, unpack(marker[2]))
  redis.call('PEXPIRE', KEYS[1], left)
  shrink(KEYS[1])
end
return total
