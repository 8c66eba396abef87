-- Forget the runs that ended the longest ago, as far as they are too old or all take too much. Returns how many these were.
-- KEYS: ended runs
-- ARGV: time (Redis's clock) since which a run must have ended to be kept, most bytes of all, most runs to forget, seconds
--   after which the sizes expire unless this is called
local all, max_bytes, most = KEYS[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local prefix, sizes = string.match(all, '^(.*):ended$'), ended_run_sizes(all)
local function forget(job) forget_ended_run(prefix .. ':jobs:{' .. job .. '}') end

local jobs = redis.call('ZRANGEBYSCORE', all, '-inf', '(' .. ARGV[1], 'LIMIT', 0, most)
for _, job in ipairs(jobs) do forget(job) end
-- A worker of an older release has forgotten runs and not their sizes: what is kept now counts no more, and goes by age.
if redis.call('HLEN', sizes) > redis.call('ZCARD', all) + 1 then redis.call('DEL', sizes) end
local forgotten = #jobs
while forgotten < most and (tonumber(redis.call('HGET', sizes, ENDED_RUNS_TOTAL) or 0) or 0) > max_bytes do
  local oldest = redis.call('ZRANGE', all, 0, 0)[1]
  if not oldest then break end
  forget(oldest)
  forgotten = forgotten + 1
end
-- Not the lists themselves: an older release fills them, too, and forgets by them, but renews nothing.
redis.call('EXPIRE', sizes, ARGV[4])
return forgotten
