-- The log of a job: one numbering for all that is told of it, by the run itself and by every log that is
-- followed for it. Keeps each line, sends it, and says once, last, that all of it is over.
-- KEYS: state, history, run; for `relay` those of one log after the other
-- ARGV: operation, channel, least length of the history, seconds that a finished log is kept, then for
--   say     time, level, the lines of the run itself
--   relay   time, level, most lines, most bytes, then of each log: channel, source, claim, position, how many
--             lines, the lines
--             -> of each how many of these lines are in, all or up to the limit; -1 when the claim was lost; or
--             what Redis has against it, which is not to hold up the others
--   book    source, how to follow it -> 1 when there is something to follow, 0 when that is over
--   begin   source, claim -> {position, how to follow it}; nothing when it is over or another claim is newer
--   close   source, claim, reason, time, the relay's last word or '' -> 1, or 0 when the claim was lost
--   settle  '1' when the end of the run is being reported, or '' -> 1 when the log is over
local operation = ARGV[1]
local SEVERITY = {ended = 1, stopped = 2, limit = 3, unreachable = 4}
local state, history, run, channel, seq, reopened, longest

local function field(name) return redis.call('HGET', state, name) end
local function number(name) return tonumber(field(name) or '0') end

-- One look at many fields: most of what a relayed line costs Redis are calls such as this.
local function numbers(...)
  local found = redis.call('HMGET', state, ...)
  for index = 1, #found do found[index] = tonumber(found[index] or '0') end
  return unpack(found)
end

-- All that follows is about the log whose keys begin at this index. Returns what stands in these fields besides.
local function open(index, name, ...)
  state, history, run, channel = KEYS[index], KEYS[index + 1], KEYS[index + 2], name
  local found = {numbers('seq', 'reopened', 'longest', ...)}
  seq, reopened, longest = found[1], found[2], math.max(tonumber(ARGV[3]), found[3])
  return unpack(found, 4)
end

local function enter(rest, ...)
  seq = seq + 1
  redis.call('XADD', history, 'MAXLEN', '~', longest, seq .. '-' .. reopened, 'seq', seq, ...)
  redis.call('PUBLISH', channel, '{"seq":' .. seq .. ',' .. rest .. '}')
end

-- What enters one line after the other.
local function entering(time, source, level)
  local head = '"time":' .. cjson.encode(time) .. ',"source":' .. cjson.encode(source)
    .. ',"level":' .. cjson.encode(level) .. ',"line":'
  return function(line)
    enter(head .. cjson.encode(line), 'time', time, 'source', source, 'level', level, 'line', line)
  end
end

local function is_reported()
  return not run_exists(run) or run_reported(run) or redis.call('HEXISTS', state, 'reported') == 1
end

local function run_lives() return not is_reported() and not run_ended(run) end

local function is_over() return redis.call('HEXISTS', state, 'over') == 1 end

-- More comes after all: the end that was told is taken back, so that it stands once in the history, and last.
local function reopen()
  redis.call('XDEL', history, seq .. '-' .. reopened)
  seq, reopened = seq - 1, reopened + 1
  redis.call('HSET', state, 'seq', seq, 'reopened', reopened)
  redis.call('HDEL', state, 'over')
  redis.call('PERSIST', state)
  redis.call('PERSIST', history)
end

-- Why it is over: of all reasons the one that matters most to whoever reads the log.
local function reason_of_all()
  local ended = redis.call('HGET', run, RUN.ended)
  local read, how = pcall(cjson.decode, ended or '')
  local worst = (read and how.status == 'STOPPED') and 'stopped' or 'ended'
  local fields = redis.call('HGETALL', state)
  for index = 1, #fields, 2 do
    local reason = fields[index]:sub(1, 7) == 'closed:' and fields[index + 1] or 'ended'
    if SEVERITY[reason] > SEVERITY[worst] then worst = reason end
  end
  return worst
end

local function settle()
  if number('open') > 0 or run_lives() then return 0 end
  if not is_over() then
    local reason = reason_of_all()
    enter('"type":"end","reason":"' .. reason .. '"', 'type', 'end', 'reason', reason)
    redis.call('HSET', state, 'seq', seq, 'over', 1)
  end
  if is_reported() then
    redis.call('EXPIRE', state, ARGV[4])
    redis.call('EXPIRE', history, ARGV[4])
  end
  return 1
end

local function say(time, level, first)
  if is_over() and not run_lives() or not run_exists(run) then return -1 end
  if is_over() then reopen() end
  local add = entering(time, 'run', level)
  for index = first, #ARGV do add(ARGV[index]) end
  redis.call('HSET', state, 'seq', seq)
  return #ARGV - first + 1
end

local function relay(index, name, source, claim, at, first, last)
  local time, level, most_lines, most_bytes = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
  local holder, position, lines, bytes =
    open(index, name, 'claim:' .. source, 'position:' .. source, 'lines', 'bytes')
  if holder ~= claim then return -1 end
  -- Sent again because the answer got lost, perhaps with more behind it: what is in stays in, once.
  local known = position - at
  if known < 0 or known > last - first + 1 then return -1 end
  local taken, add = 0, entering(time, source, level)
  for index = first + known, last do
    local size = #ARGV[index] + 1
    if lines + 1 > most_lines or bytes + size > most_bytes then break end
    add(ARGV[index])
    taken, lines, bytes = taken + 1, lines + 1, bytes + size
  end
  if taken > 0 then
    redis.call('HSET', state, 'seq', seq, 'position:' .. source, position + taken,
      'lines', lines, 'bytes', bytes)
  end
  return known + taken
end

if operation == 'relay' then
  local answers, at = {}, 9
  for index = 1, #KEYS, 3 do
    local first = at + 5
    local last = first + ARGV[at + 4] - 1
    local claim, position = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local went, answer = pcall(relay, index, ARGV[at], ARGV[at + 1], claim, position, first, last)
    answers[#answers + 1] = went and answer or tostring(answer)
    at = last + 1
  end
  return answers
end

open(1, ARGV[2])
if operation == 'say' then
  return say(ARGV[5], ARGV[6], 7)
elseif operation == 'book' then
  local source = ARGV[5]
  local before = field('closed:' .. source)
  -- One that could not be reached may be asked for again.
  if before and before ~= 'unreachable' then return 0 end
  if before or not field('log:' .. source) then
    if is_over() then reopen() end
    redis.call('HDEL', state, 'closed:' .. source)
    redis.call('HSET', state, 'log:' .. source, ARGV[6], 'longest', longest)
    redis.call('HINCRBY', state, 'open', 1)
  end
  return 1
elseif operation == 'begin' then
  local source, claim = ARGV[5], ARGV[6]
  local how = field('log:' .. source)
  if not how or field('closed:' .. source) then return {} end
  if tonumber(claim) < number('claim:' .. source) then return {} end
  redis.call('HSET', state, 'claim:' .. source, claim)
  return {number('position:' .. source), how}
elseif operation == 'close' then
  local source, claim, reason = ARGV[5], ARGV[6], ARGV[7]
  if field('closed:' .. source) then return 1 end
  if field('claim:' .. source) ~= claim then return 0 end
  redis.call('HSET', state, 'closed:' .. source, reason)
  redis.call('HDEL', state, 'claim:' .. source)
  redis.call('HINCRBY', state, 'open', -1)
  if ARGV[9] ~= '' then
    entering(ARGV[8], 'relay', 'warning')(ARGV[9])
    redis.call('HSET', state, 'seq', seq)
  end
  settle()
  return 1
elseif operation == 'settle' then
  if not run_exists(run) and redis.call('EXISTS', state) == 0 then return 0 end
  if ARGV[5] == '1' then redis.call('HSET', state, 'reported', 1) end
  return settle()
end
