-- Put held messages back on their lists. Whoever finds a tag gone comes too late and does nothing.
-- KEYS: held, due. ARGV: RPUSH (next to be taken) or LPUSH (last), '1' if only what is due, then tag, text, ...
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local given = 0
for i = 3, #ARGV, 2 do
  local entry = redis.call('HGET', KEYS[1], ARGV[i])
  local due = redis.call('ZSCORE', KEYS[2], ARGV[i])
  if entry and (ARGV[2] ~= '1' or not due or tonumber(due) <= now) then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call(ARGV[1], string.sub(entry, 1, string.find(entry, '\n', 1, true) - 1), ARGV[i + 1])
    given = given + 1
  end
end
return given
