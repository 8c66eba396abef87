-- The percentages of a step and of the whole never fall; after the end nothing changes. Returns 1 to the caller that is
-- to report it.
-- Numbers are stored as they came: as a number of Lua's, 88.96 would be shown as 88.959999999999994.
-- KEYS: progress, record, run, outbox   ARGV: job, channel, seconds until the report, the step's place among the steps,
--   percent, then the name and the share of each step
if not run_open(KEYS[3]) then return 0 end
local step, percent = ARGV[4 + 2 * ARGV[4]], ARGV[5]
if tonumber(percent) <= tonumber(redis.call('HGET', KEYS[1], step) or '-1') then return 0 end
redis.call('HSET', KEYS[1], step, percent)
local names, before = {}, {}
for index = 6, #ARGV, 2 do names[#names + 1] = ARGV[index] end
if redis.call('HSETNX', KEYS[1], 'since:' .. step, now_seconds()) == 1 and tonumber(ARGV[4]) > 1 then
  -- The steps before this one are done, so nothing is kept of them: a run that waits is to be small.
  for index = 1, ARGV[4] - 1 do
    before[#before + 1], before[#before + 2] = names[index], 'since:' .. names[index]
  end
  redis.call('HDEL', KEYS[1], unpack(before))
end
local stored, sum = redis.call('HMGET', KEYS[1], unpack(names)), 0
for index = 1, #names do
  -- The steps before this one are done, whatever was stored of them.
  local done = index < tonumber(ARGV[4]) and 100 or tonumber(stored[index] or '0')
  sum = sum + ARGV[5 + 2 * index] * done
end
local overall = string.format('%.10g', math.floor(sum + 0.5) / 100)
local known = redis.call('HGET', KEYS[2], 'overall') or '0'
if tonumber(overall) > tonumber(known) then
  redis.call('HSET', KEYS[2], 'overall', overall, 'updated', now_seconds())
else
  overall = known
end
redis.call('PUBLISH', ARGV[2], '{"type": "progress", "step": ' .. cjson.encode(step) .. ', "percent": ' .. percent
  .. ', "overall": ' .. overall .. '}')
publish_change(KEYS[2], {overall = overall, progress_step = step, percent = percent})
return schedule_report(KEYS[3], KEYS[4], ARGV[1], ARGV[3])
