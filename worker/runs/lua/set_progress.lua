-- The percentages of a step and of the whole never fall; after the end nothing changes.
-- Numbers are stored as they came: as a number of Lua's, 88.96 would be shown as 88.959999999999994.
-- KEYS: progress, record, run   ARGV: step, percent, overall
if not run_open(KEYS[3]) then return 0 end
local percent = tonumber(ARGV[2])
local before = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '-1')
if percent <= before then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HSETNX', KEYS[1], 'since:' .. ARGV[1], now_seconds())
local overall = tonumber(ARGV[3])
if overall > tonumber(redis.call('HGET', KEYS[2], 'overall') or '0') then
  redis.call('HSET', KEYS[2], 'overall', ARGV[3], 'updated', now_seconds())
end
return 1
