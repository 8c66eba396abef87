-- What is done to the log of a job, for the scripts that include this.
local SEVERITY = {ended = 1, stopped = 2, limit = 3, unreachable = 4}

local state, history, run, channel, seq, reopened, history_length

local function field(name) return redis.call('HGET', state, name) end
local function number(name) return tonumber(field(name) or '0') end

-- Reads several fields in one call, because such calls are most of what a relayed line costs Redis.
local function numbers(...)
  local found = redis.call('HMGET', state, ...)
  for index = 1, #found do found[index] = tonumber(found[index] or '0') end
  return unpack(found)
end

-- Selects a log for everything that follows, by its keys and its channel. Its history has at least `min_length` entries.
-- Returns the values of the named fields.
local function select_log(state_key, history_key, run_key, name, min_length, ...)
  state, history, run, channel = state_key, history_key, run_key, name
  local found = {numbers('seq', 'reopened', 'longest', ...)}
  seq, reopened, history_length = found[1], found[2], math.max(tonumber(min_length), found[3])
  return unpack(found, 4)
end

local function add_entry(json_fields, ...)
  seq = seq + 1
  redis.call('XADD', history, 'MAXLEN', '~', history_length, seq .. '-' .. reopened, 'seq', seq, ...)
  redis.call('PUBLISH', channel, '{"seq":' .. seq .. ',' .. json_fields .. '}')
end

-- Returns a function that adds one line. The fields that all lines of a call share are encoded once.
local function line_appender(time, source, level)
  local shared_fields = '"time":' .. cjson.encode(time) .. ',"source":' .. cjson.encode(source)
    .. ',"level":' .. cjson.encode(level) .. ',"line":'
  return function(line)
    add_entry(shared_fields .. cjson.encode(line), 'time', time, 'source', source, 'level', level, 'line', line)
  end
end

local function is_reported()
  return not run_exists(run) or run_reported(run) or redis.call('HEXISTS', state, 'reported') == 1
end

local function takes_messages() return not is_reported() and not run_ended(run) end

local function is_closed() return redis.call('HEXISTS', state, 'over') == 1 end

-- Removes the end marker because more entries follow, so that the history holds it once, and last.
local function reopen()
  redis.call('XDEL', history, seq .. '-' .. reopened)
  seq, reopened = seq - 1, reopened + 1
  redis.call('HSET', state, 'seq', seq, 'reopened', reopened)
  redis.call('HDEL', state, 'over')
  redis.call('PERSIST', state)
  redis.call('PERSIST', history)
end

-- The most severe of the reasons for which the run and its logs ended: it matters most to the reader of the log.
local function end_reason()
  local run_end = redis.call('HGET', run, RUN.ended)
  local decoded, content = pcall(cjson.decode, run_end or '')
  local worst = (decoded and content.status == 'STOPPED') and 'stopped' or 'ended'
  local fields = redis.call('HGETALL', state)
  for index = 1, #fields, 2 do
    local reason = fields[index]:sub(1, 7) == 'closed:' and fields[index + 1] or 'ended'
    if SEVERITY[reason] > SEVERITY[worst] then worst = reason end
  end
  return worst
end

local function close_if_complete(retention)
  if number('open') > 0 or takes_messages() then return 0 end
  if not is_closed() then
    local reason = end_reason()
    add_entry('"type":"end","reason":"' .. reason .. '"', 'type', 'end', 'reason', reason)
    redis.call('HSET', state, 'seq', seq, 'over', 1)
  end
  if is_reported() then
    redis.call('EXPIRE', state, retention)
    redis.call('EXPIRE', history, retention)
  end
  return 1
end

local function append_message(time, level, lines)
  if is_closed() and not takes_messages() or not run_exists(run) then return -1 end
  if is_closed() then reopen() end
  local append = line_appender(time, 'run', level)
  for _, line in ipairs(lines) do append(line) end
  redis.call('HSET', state, 'seq', seq)
  return #lines
end
