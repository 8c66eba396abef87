-- The slots of one tenant. A holder is the lock of a chunk, or a run; its slot is free again when it gives it back, or when
-- it is found to be gone: a lock that has expired, a run that has ended. A delivery that finds none leaves its
-- message, which is published as soon as there is one.
-- KEYS: slots (holders by the time from which they are looked at), waiting (holders by when they came), messages (by
--   holder), tenants for whose slots somebody waits, then for `take` the run, and its record
-- ARGV: operation, tenant, most slots, '1' when holders are runs, then for
--   take   holder, and where it is to wait if need be: command and list of its message, the message, what it waits for
--          -> 'has' a slot, 'full' where no message was given, or 'waits'
--   free   holder, and for a chunk the token by which its delivery holds the lock
--   hand_out
--   publish, where slots are not limited any more: so many messages that wait, which take none
-- and last, for each, '1' when the queues are in this Redis
local slots, waiting, messages, tenants = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local operation, tenant, most, are_runs, holder = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1', ARGV[5]
local has_queues = ARGV[#ARGV] == '1'
local time = now()
-- Seconds until a holder is looked at: one that has begun, and one whose message has just been published.
local BEGUN, PUBLISHED = 5, 30
-- Seconds for which a tenant's keys are kept when nothing of the tenant takes a slot, waits for one or frees one. What waits
-- is sent again by the sweep each hour; a run may hold its slot for as long as it wants while others of its tenant come.
local KEPT = 7 * 24 * 60 * 60
local function keep()
  for index = 1, 4 do redis.call('EXPIRE', KEYS[index], KEPT) end
end

local function is_gone(name)
  if are_runs then return not run_open(name) end
  return redis.call('EXISTS', name) == 0
end

local function are_free() return redis.call('ZCARD', slots) < most end

-- Each holder is looked at once in so many seconds, however often slots are asked for.
local function drop_gone()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', slots, '-inf', time)) do
    if is_gone(name) then redis.call('ZREM', slots, name) else redis.call('ZADD', slots, time + BEGUN, name) end
  end
end

-- Publish the message of the one that has waited longest. Returns whether there was one, and its name if its run lives.
local function publish_next()
  local name = redis.call('ZRANGE', waiting, 0, 0)[1]
  if not name then
    redis.call('SREM', tenants, tenant)
    return false
  end
  local is_read, waits = pcall(cjson.decode, redis.call('HGET', messages, name) or '')
  redis.call('ZREM', waiting, name)
  redis.call('HDEL', messages, name)
  -- A message that is damaged keeps no other one waiting; the sweep sends it again.
  if not is_read or type(waits) ~= 'table' or not run_open(waits.run) then return true end
  if has_queues then
    redis.call(waits.command, waits.list, waits.message)
  else
    -- It has waited since the queues were in this Redis, where nobody reads them any more: the sweep publishes the step.
    local heartbeats = string.match(tenants, '^(.*):tenants:') .. ':live'
    redis.call('ZADD', heartbeats, 'XX', 0, 'run:' .. string.match(waits.run, '{(.*)}'))
  end
  return true, name
end

local function hand_out()
  while are_free() do
    local found, name = publish_next()
    if not found then return end
    if name then redis.call('ZADD', slots, time + PUBLISHED, name) end
  end
  keep()
end

if operation == 'free' then
  -- A delivery whose lock has expired frees nothing: the slot may be that of another one of the same chunk by now. What is
  -- nobody's is found soon.
  if are_runs or redis.call('GET', holder) == ARGV[6] then redis.call('ZREM', slots, holder) end
  hand_out()
  return
elseif operation == 'hand_out' then
  drop_gone()
  hand_out()
  return
elseif operation == 'publish' then
  for _ = 1, most do
    if not publish_next() then return end
  end
  return
end

if not redis.call('ZSCORE', slots, holder) then
  if not are_free() then drop_gone() end
  hand_out()
end
if redis.call('ZSCORE', slots, holder) or are_free() then
  redis.call('ZADD', slots, time + BEGUN, holder)
  redis.call('ZREM', waiting, holder)
  redis.call('HDEL', messages, holder)
  keep()
  if are_runs and redis.call('HDEL', KEYS[6], 'waiting_for') == 1 then publish_change(KEYS[6], {waiting_for = ''}) end
  return 'has'
end
local run, record, command, list, message, waiting_for = KEYS[5], KEYS[6], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
if message ~= '' then
  redis.call('ZADD', waiting, 'NX', time, holder)
  redis.call('HSET', messages, holder, cjson.encode({run = run, command = command, list = list, message = message}))
  redis.call('SADD', tenants, tenant)
  keep()
end
if waiting_for ~= '' and run_open(run) and redis.call('HSET', record, 'waiting_for', waiting_for) == 1 then
  publish_change(record, {waiting_for = waiting_for, waiting_since = now_seconds()})
end
return message == '' and 'full' or 'waits'
