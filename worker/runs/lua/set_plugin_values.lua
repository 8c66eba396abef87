-- Store what plugin code reports of its own progress and metrics, beside the run's; after the end nothing changes.
-- Returns 1 to the caller that is to report it.
-- KEYS: progress, record, run, outbox   ARGV: job, channel, seconds until the report, maximum fields of the progress,
--   then of each value: field, value, event or ''; to an event that ends with a blank the overall progress is added
if not run_open(KEYS[3]) then return 0 end
local overall = redis.call('HGET', KEYS[2], 'overall') or '0'
for index = 5, #ARGV, 3 do
  local field, value, event = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  -- Names are the author's, and a run of many tasks must not make a hash of many fields.
  if redis.call('HEXISTS', KEYS[1], field) == 1 or redis.call('HLEN', KEYS[1]) < tonumber(ARGV[4]) then
    redis.call('HSET', KEYS[1], field, value)
    if string.sub(event, -1) == ' ' then event = event .. overall .. '}' end
    if event ~= '' then redis.call('PUBLISH', ARGV[2], event) end
  end
end
return schedule_report(KEYS[3], KEYS[4], ARGV[1], ARGV[3])
