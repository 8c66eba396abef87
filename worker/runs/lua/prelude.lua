-- What scripts about runs share; stands before each of them, after the fields of a run's hash (`RUN`).

local function run_exists(run) return redis.call('EXISTS', run) == 1 end
local function run_ended(run) return redis.call('HEXISTS', run, RUN.ended) == 1 end
local function run_reported(run) return redis.call('HEXISTS', run, RUN.reported) == 1 end
local function run_open(run) return run_exists(run) and not run_ended(run) end

-- The run waits in a list (a sorted set of jobs), which it leaves when it ends.
local function join_waitlist(run, list) redis.call('HSET', run, RUN.waits_in, list) end

-- Redis's clock, in seconds: with a fraction, or whole and as text.
local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end
local function now_seconds() return redis.call('TIME')[1] end

-- Redis allocates 4 KB for a stream of one short entry; a stream that is read anew has the length of its entries.
-- A user of Redis without the right to do that keeps the 4 KB.
local function shrink(stream)
  local left, content = redis.call('PTTL', stream), redis.pcall('DUMP', stream)
  if type(content) == 'string' then redis.pcall('RESTORE', stream, math.max(left, 0), content, 'REPLACE') end
end

-- A poll begins: only the newest generation goes on, so that copies of older polls end here. An advance is stored
-- before the next poll is published, and a worker may die in between: the redelivered older poll then publishes the
-- newer one, unless that one has begun. Returns 'claimed', 'superseded' or 'republish', and the newest generation.
local function claim_generation(polls, newest_field, claimed_field, generation, redelivered)
  local newest = tonumber(redis.call('HGET', polls, newest_field) or '0')
  if generation < newest then
    local claimed = tonumber(redis.call('HGET', polls, claimed_field) or '0')
    return redelivered and claimed < newest and 'republish' or 'superseded', newest
  end
  -- Where there is no generation yet there may be no hash, and one that is created here would never expire.
  if newest > 0 then redis.call('HSET', polls, claimed_field, generation) end
  return 'claimed', generation
end

-- The next poll gets the generation after this one (without one, after the newest), unless a newer one is known.
-- Returns the newest.
local function advance_generation(polls, newest_field, generation)
  local newest = tonumber(redis.call('HGET', polls, newest_field) or '0')
  generation = generation or newest
  if generation < newest then return newest end
  redis.call('HSET', polls, newest_field, generation + 1)
  return generation + 1
end

