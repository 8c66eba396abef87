-- What came of tasks, each counted once. Returns 0 when the run is over: nothing is written then.
-- KEYS: run, record, done, failures, attempts, tickets, polls, the run's polls
-- ARGV: most failures, field of the deliveries or '', (position, id, failure or '', '1' when it was annotated before)...
if not run_open(KEYS[1]) then return 0 end
local _, _, _, failed_tasks = ended_keys(KEYS[2])
local change, has_changed = {}, false
for i = 3, #ARGV, 4 do
  local position, id, failure = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('SETBIT', KEYS[3], position, 1) == 0 then
    local field = failure == '' and 'success' or 'failed'
    change[field], has_changed = tostring(redis.call('HINCRBY', KEYS[2], field, 1)), true
    if failure ~= '' and redis.call('LLEN', KEYS[4]) < tonumber(ARGV[1]) then
      redis.call('RPUSH', KEYS[4], failure)
    end
    if failure ~= '' then
      -- All of them are kept, for a retry; with the run's keys until its end moves them to what is kept of it.
      redis.call('RPUSH', failed_tasks, id)
      redis.call('SADD', KEYS[2] .. ':keys', failed_tasks)
    end
    if ARGV[i + 3] == '1' then redis.call('HINCRBY', KEYS[2], 'skipped', 1) end
    redis.call('HDEL', KEYS[5], position)
    redis.call('HDEL', KEYS[6], position)
    redis.call('HDEL', KEYS[7], position)
    forget_deliveries(KEYS[8], ARGV[2])
  end
end
if has_changed then publish_change(KEYS[2], change) end
return 1
