-- What came of tasks, each counted once. Returns 0 when the run is over: nothing is written then.
-- KEYS: run, record, done, failures, attempts, tickets, polls, the run's polls
-- ARGV: most failures, field of the deliveries or '', (position, failure or '')...
if not run_open(KEYS[1]) then return 0 end
local change, has_changed = {}, false
for i = 3, #ARGV, 2 do
  local position, failure = ARGV[i], ARGV[i + 1]
  if redis.call('SETBIT', KEYS[3], position, 1) == 0 then
    local field = failure == '' and 'success' or 'failed'
    change[field], has_changed = tostring(redis.call('HINCRBY', KEYS[2], field, 1)), true
    if failure ~= '' and redis.call('LLEN', KEYS[4]) < tonumber(ARGV[1]) then
      redis.call('RPUSH', KEYS[4], failure)
    end
    redis.call('HDEL', KEYS[5], position)
    redis.call('HDEL', KEYS[6], position)
    redis.call('HDEL', KEYS[7], position)
    forget_deliveries(KEYS[8], ARGV[2])
  end
end
if has_changed then publish_change(KEYS[2], change) end
return 1
