-- Percent of a step and of the whole never fall; after the end nothing changes.
-- KEYS: progress, record, run   ARGV: step, percent, overall
if redis.call('EXISTS', KEYS[3]) == 0 or redis.call('HEXISTS', KEYS[3], 'end') == 1 then return 0 end
local percent = tonumber(ARGV[2])
local before = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '-1')
if percent <= before then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], percent)
redis.call('HSETNX', KEYS[1], 'since:' .. ARGV[1], redis.call('TIME')[1])
local overall = tonumber(ARGV[3])
if overall > tonumber(redis.call('HGET', KEYS[2], 'overall') or '0') then
  redis.call('HSET', KEYS[2], 'overall', overall, 'updated', redis.call('TIME')[1])
end
return 1
