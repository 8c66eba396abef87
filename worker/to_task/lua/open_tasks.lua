-- What of a chunk is not done: a flat list of position, id, attempts, ticket or '', polls of it or ''.
-- KEYS: task index, chunks, done, attempts, tickets, polls   ARGV: chunk
local ids = redis.call('HGET', KEYS[2], ARGV[1])
if not ids then return {} end
local position = tonumber(ARGV[1]) * tonumber(redis.call('HGET', KEYS[1], 'size'))
local open = {}
for id in string.gmatch(ids, '%d+') do
  if redis.call('GETBIT', KEYS[3], position) == 0 then
    open[#open + 1] = position
    open[#open + 1] = id
    open[#open + 1] = tonumber(redis.call('HGET', KEYS[4], position) or '0')
    open[#open + 1] = redis.call('HGET', KEYS[5], position) or ''
    open[#open + 1] = redis.call('HGET', KEYS[6], position) or ''
  end
  position = position + 1
end
return open
