-- A run joins: the first starts the poll, and one of all claims the dispatch. One that has ended does not join.
-- KEYS: waiting list, waiters, run, public record of the run, names of the lists in which runs wait
-- ARGV: job, timeout in seconds, is a retry, token of a claim, seconds an unsent claim holds, expiry in seconds,
--   stored fields of a dispatch as JSON, what listeners read about the wait, name of the list
if run_ended(KEYS[3]) then return {0, 0, 0, ''} end
local now = now()
local first = redis.call('ZADD', KEYS[2], 'NX', now + tonumber(ARGV[2]), ARGV[1])
redis.call('SADD', KEYS[5], ARGV[9])
join_waitlist(KEYS[3], KEYS[2], KEYS[4], ARGV[8], redis.call('ZSCORE', KEYS[2], ARGV[1]))
local fields = cjson.decode(ARGV[7])
local job = redis.call('HGET', KEYS[1], fields.job)
if first == 1 and redis.call('ZCARD', KEYS[2]) == 1 then
  -- The dispatch is of runs that have left: its job may have ended since.
  if job then redis.call('HSET', KEYS[1], fields.job_unverified, 1) end
  -- Its failure was theirs; what may have come of it all the same is given its time.
  if (redis.call('HGET', KEYS[1], fields.failure) or '') ~= '' then
    if job or redis.call('HGET', KEYS[1], fields.maybe_accepted) == '1' then
      redis.call('HSET', KEYS[1], fields.failure, '', fields.maybe_accepted, 0)
    else
      for _, field in pairs(fields) do redis.call('HDEL', KEYS[1], field) end
    end
  end
end
local token = redis.call('HGET', KEYS[1], fields.token)
local free = not token
if token and redis.call('HEXISTS', KEYS[1], fields.sent_at) == 0 then
  -- Claimed, but not sent: its owner joins again, or has died.
  local claimed = tonumber(redis.call('HGET', KEYS[1], fields.claimed_at))
  free = redis.call('HGET', KEYS[1], fields.claimed_by) == ARGV[1] or now - claimed > tonumber(ARGV[5])
end
if free then
  redis.call('HSET', KEYS[1], fields.token, ARGV[4], fields.claimed_by, ARGV[1], fields.claimed_at, now)
end
local started = 0
if ARGV[3] == '1' or redis.call('HGET', KEYS[1], 'polling') ~= '1' then
  -- A run that joins again may have died before it published the poll; the generation ends an older copy.
  redis.call('HSET', KEYS[1], 'polling', 1)
  started = advance_generation(KEYS[1], 'generation')
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('EXPIRE', KEYS[2], ARGV[6])
return {started, free and 1 or 0, first, job or ''}
