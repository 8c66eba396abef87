-- Take a page of ids in, once: the page that the cursor stands at, while the run lives. Whole chunks are
-- written under their number, the remainder is carried to the next page, or is the last chunk.
-- KEYS: run, record, task index, seen, chunks, polls   ARGV: page, link to the next or '', chunk size,
--   how many pages in a row may have no new id, field of the deliveries or '', under what the link is remembered
--   or '', the listing as JSON, '1' for the last page of the last listing or '', id...
if not run_open(KEYS[1]) then return 'over' end
local at = tonumber(redis.call('HGET', KEYS[3], 'page') or '0')
if at ~= tonumber(ARGV[1]) or redis.call('HEXISTS', KEYS[3], 'complete') == 1 then return 'stale' end
local link = ARGV[2]
if ARGV[6] ~= '' and redis.call('SADD', KEYS[4], ARGV[6]) == 0 then return 'circle' end
redis.call('HSETNX', KEYS[3], 'size', ARGV[3])
local size = tonumber(redis.call('HGET', KEYS[3], 'size'))
local chunks = tonumber(redis.call('HGET', KEYS[3], 'chunks') or '0')
local total = tonumber(redis.call('HGET', KEYS[3], 'total') or '0')
local rest = {}
for id in string.gmatch(redis.call('HGET', KEYS[3], 'rest') or '', '%d+') do rest[#rest + 1] = id end
local function write()
  redis.call('HSETNX', KEYS[5], chunks, table.concat(rest, ','))
  chunks, rest = chunks + 1, {}
end
local known = total
for i = 9, #ARGV do
  if redis.call('SADD', KEYS[4], ARGV[i]) == 1 then
    rest[#rest + 1] = ARGV[i]
    total = total + 1
    if #rest == size then write() end
  end
end
-- Pages that bring nothing new and always link to another one would never end.
local repeated = total == known and tonumber(redis.call('HGET', KEYS[3], 'repeated') or '0') + 1 or 0
if link ~= '' and repeated >= tonumber(ARGV[4]) then return 'repeated' end
if ARGV[8] ~= '' then
  if #rest > 0 then write() end
  redis.call('HSET', KEYS[3], 'complete', 1)
  redis.call('HSET', KEYS[2], 'total', total)
  publish_change(KEYS[2], {total = tostring(total)})
  redis.call('UNLINK', KEYS[4])
end
redis.call('HSET', KEYS[3], 'page', at + 1, 'link', link, 'rest', table.concat(rest, ','),
  'chunks', chunks, 'total', total, 'repeated', repeated, 'listing', ARGV[7])
forget_deliveries(KEYS[6], ARGV[5])
return 'committed'
