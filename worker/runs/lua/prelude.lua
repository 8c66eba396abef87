-- What scripts about runs share; it stands before each of them.

-- A poll begins: only the newest generation goes on, so that copies of older polls end here. An advance is stored
-- before the next poll is published, and a worker may die in between: the redelivered older poll then publishes the
-- newer one, unless that one has begun. Returns 'claimed', 'superseded' or 'republish', and the newest generation.
local function claim_generation(key, newest_field, claimed_field, generation, redelivered)
  local newest = tonumber(redis.call('HGET', key, newest_field) or '0')
  if generation < newest then
    local claimed = tonumber(redis.call('HGET', key, claimed_field) or '0')
    return redelivered and claimed < newest and 'republish' or 'superseded', newest
  end
  -- Where there is no generation yet there may be no hash, and one that is created here would never expire.
  if newest > 0 then redis.call('HSET', key, claimed_field, generation) end
  return 'claimed', generation
end

-- The next poll gets the generation after this one (without one, after the newest), unless a newer one is known.
-- Returns the newest.
local function advance_generation(key, newest_field, generation)
  local newest = tonumber(redis.call('HGET', key, newest_field) or '0')
  generation = generation or newest
  if generation < newest then return newest end
  redis.call('HSET', key, newest_field, generation + 1)
  return generation + 1
end

