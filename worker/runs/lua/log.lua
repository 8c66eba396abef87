-- The log of a job. It gives one sequence of numbers to the messages of the run and to the lines of every log that is
-- relayed for the job, keeps each entry in the history, publishes it, and writes one end marker after the last entry.
-- KEYS: state, history, run; for `append_lines` these three of each log in turn
-- ARGV: operation, channel, minimum length of the history, seconds for which a closed log is kept, then for
--   append_message     time, level, lines
--                      -> the number of lines; -1 when the log takes no more messages
--   append_lines       time, level, maximum lines, maximum bytes, then of each log: channel, source, claim, position,
--                      number of lines, lines
--                      -> for each log how many of its lines are stored (fewer than sent: the limit is reached), -1
--                      when the claim was lost, or a text with Redis's error, which does not stop the other logs
--   message            time, level, channel of the events, event, message for the backend, job, seconds until the report,
--                      lines or none; with the keys: state, history, run, messages, outbox
--                      -> 1 to the caller that is to report the message
--   finish             time, level, end, status, error, position of the step that ends the runs or '', seconds until
--                      the end is overdue, event, '1' where ends go to a webhook, too, seconds for which an ended run
--                      is kept, number of lines, lines, then of each run: job, channel of its log, channel of its
--                      events, member of the heartbeats; with the keys: heartbeats, overdue counts, outbox, webhooks,
--                      then state, history, run, record of each run
--                      -> for each run its action when this is its end; 0 when it had ended, is gone, or has passed the step
--   subscribe          source, connection options -> 1 when the log is to be tailed, 0 when it is closed already
--   claim              source, claim
--                      -> {position, connection options}; {} when the log is closed or a newer claim exists
--   close              source, claim, reason, time, the relay's final line or '' -> 1; 0 when the claim was lost
--   close_if_complete  -> 1 when the log is closed
--   mark_reported      job, its member of the heartbeats; with the keys: state, history, run, outbox, ended logs,
--                      heartbeats, overdue counts, webhooks, set of keys that expire with the run, other keys that do
--                      -> 1 to the caller that is to send the end to the webhook
local operation = ARGV[1]
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

-- Selects the log whose keys begin at `index` for everything that follows. Returns the values of the named fields.
local function select_log(index, name, ...)
  state, history, run, channel = KEYS[index], KEYS[index + 1], KEYS[index + 2], name
  local found = {numbers('seq', 'reopened', 'longest', ...)}
  seq, reopened, history_length = found[1], found[2], math.max(tonumber(ARGV[3]), found[3])
  return unpack(found, 4)
end

local function add_entry(json_fields, ...)
  seq = seq + 1
  redis.call('XADD', history, 'MAXLEN', '~', history_length, seq .. '-' .. reopened, 'seq', seq, ...)
  if seq == 1 then shrink(history) end
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

local function add_end_marker()
  local reason = end_reason()
  add_entry('"type":"end","reason":"' .. reason .. '"', 'type', 'end', 'reason', reason)
  redis.call('HSET', state, 'seq', seq, 'over', 1)
end

local function close_if_complete()
  if number('open') > 0 or takes_messages() then return 0 end
  if not is_closed() then add_end_marker() end
  if is_reported() then
    redis.call('EXPIRE', state, ARGV[4])
    redis.call('EXPIRE', history, ARGV[4])
  end
  return 1
end

local function append_message(time, level, first)
  if is_closed() and not takes_messages() or not run_exists(run) then return -1 end
  if is_closed() then reopen() end
  local append = line_appender(time, 'run', level)
  for index = first, #ARGV do append(ARGV[index]) end
  redis.call('HSET', state, 'seq', seq)
  return #ARGV - first + 1
end

local function append_lines(index, name, source, claim, batch_position, first, last)
  local time, level, max_lines, max_bytes = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
  local current_claim, position, lines, bytes =
    select_log(index, name, 'claim:' .. source, 'position:' .. source, 'lines', 'bytes')
  if current_claim ~= claim then return -1 end
  -- A batch whose answer was lost is sent again, perhaps with more lines after it: those already stored are skipped.
  local stored = position - batch_position
  if stored < 0 or stored > last - first + 1 then return -1 end
  local appended, append = 0, line_appender(time, source, level)
  for index = first + stored, last do
    local size = #ARGV[index] + 1
    if lines + 1 > max_lines or bytes + size > max_bytes then break end
    append(ARGV[index])
    appended, lines, bytes = appended + 1, lines + 1, bytes + size
  end
  if appended > 0 then
    redis.call('HSET', state, 'seq', seq, 'position:' .. source, position + appended,
      'lines', lines, 'bytes', bytes)
  end
  return stored + appended
end

-- The end of one run: its last line, and the end marker unless logs are followed for it.
local function end_log(index, name, first, last)
  local open, over = select_log(index, name, 'open', 'over')
  if over == 1 then return end
  local append = line_appender(ARGV[5], 'run', ARGV[6])
  for line = first, last do append(ARGV[line]) end
  if open == 0 then add_end_marker() else redis.call('HSET', state, 'seq', seq) end
end

if operation == 'finish' then
  -- The end is written once; the first wins. A step that a run has passed meanwhile ends nothing. A run leaves the list
  -- in which it waits, and is overdue when its end is not reported in time.
  local limit, event, lines, answers = tonumber(ARGV[10]), ARGV[12], tonumber(ARGV[15]), {}
  local due, report_due = now_seconds() + ARGV[11], now() + REPORT_LEASE
  for number = 1, #KEYS / 4 - 1 do
    local key, first = 4 * number + 1, 12 + lines + 4 * number
    local ended_run, record = KEYS[key + 2], KEYS[key + 3]
    local job, log_name, events, member = ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 3]
    local position, run_end, reported, list =
      unpack(redis.call('HMGET', ended_run, RUN.position, RUN.ended, RUN.reported, RUN.waits_in))
    answers[number] = 0
    local passed = limit and position and tonumber(position) > limit
    if not run_end and not passed and (position or run_exists(ended_run)) then
      answers[number] = redis.call('HGET', record, 'action') or 'unknown'
      redis.call('HSET', ended_run, RUN.ended, ARGV[7], RUN.end_sent, 1)
      local updated = now_seconds()
      redis.call('HSET', record, 'status', ARGV[8], 'error', ARGV[9], 'updated', updated)
      redis.call('HDEL', record, 'waiting_for')
      publish_change(record, {status = ARGV[8], error = ARGV[9], updated = updated, waiting_for = ''})
      if list then redis.call('ZREM', list, job) end
      if not reported then
        redis.call('ZADD', KEYS[3], report_due, job)
        if ARGV[13] == '1' then enter_webhook(KEYS[4], job) end
        redis.call('ZADD', KEYS[1], due, member)
        redis.call('HDEL', KEYS[2], member)
        redis.call('PUBLISH', events, event)
        -- The end counts, also where it cannot be kept or the log cannot be written.
        pcall(keep_ended_run, ended_run, record, ARGV[14])
        pcall(end_log, key, log_name, 16, 15 + lines)
      end
    end
  end
  return answers
end

if operation == 'append_lines' then
  local answers, at = {}, 9
  for index = 1, #KEYS, 3 do
    local first = at + 5
    local last = first + ARGV[at + 4] - 1
    local claim, position = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local succeeded, answer = pcall(append_lines, index, ARGV[at], ARGV[at + 1], claim, position, first, last)
    answers[#answers + 1] = succeeded and answer or tostring(answer)
    at = last + 1
  end
  return answers
end

select_log(1, ARGV[2])
if operation == 'append_message' then
  return append_message(ARGV[5], ARGV[6], 7)
elseif operation == 'message' then
  redis.call('PUBLISH', ARGV[7], ARGV[8])
  if #ARGV >= 12 then
    append_message(ARGV[5], ARGV[6], 12)
  else
    -- What a run says of its wait is in no log, so who shows the wait hears it here.
    local decoded, event = pcall(cjson.decode, ARGV[8])
    if decoded then publish_change(string.match(run, '^(.*):run$'), {message = event.content}) end
  end
  -- Messages for the backend are kept only while a report will send them: after that they would never expire.
  if not run_exists(run) or run_reported(run) then return 0 end
  redis.call('RPUSH', KEYS[4], ARGV[9])
  return enter_outbox(KEYS[5], ARGV[10], ARGV[11])
elseif operation == 'subscribe' then
  local source = ARGV[5]
  local closed_reason = field('closed:' .. source)
  -- A log that could not be reached may be subscribed to again.
  if closed_reason and closed_reason ~= 'unreachable' then return 0 end
  if closed_reason or not field('log:' .. source) then
    if is_closed() then reopen() end
    redis.call('HDEL', state, 'closed:' .. source)
    redis.call('HSET', state, 'log:' .. source, ARGV[6], 'longest', history_length)
    redis.call('HINCRBY', state, 'open', 1)
  end
  return 1
elseif operation == 'claim' then
  local source, claim = ARGV[5], ARGV[6]
  local connection_options = field('log:' .. source)
  if not connection_options or field('closed:' .. source) then return {} end
  if tonumber(claim) < number('claim:' .. source) then return {} end
  redis.call('HSET', state, 'claim:' .. source, claim)
  return {number('position:' .. source), connection_options}
elseif operation == 'close' then
  local source, claim, reason = ARGV[5], ARGV[6], ARGV[7]
  if field('closed:' .. source) then return 1 end
  if field('claim:' .. source) ~= claim then return 0 end
  redis.call('HSET', state, 'closed:' .. source, reason)
  redis.call('HDEL', state, 'claim:' .. source)
  redis.call('HINCRBY', state, 'open', -1)
  if ARGV[9] ~= '' then
    line_appender(ARGV[8], 'relay', 'warning')(ARGV[9])
    redis.call('HSET', state, 'seq', seq)
  end
  close_if_complete()
  return 1
elseif operation == 'close_if_complete' then
  if not run_exists(run) and redis.call('EXISTS', state) == 0 then return 0 end
  return close_if_complete()
elseif operation == 'mark_reported' then
  -- The log's own keys may have to stay: a log that is followed for the job can outlive the run.
  redis.call('HSET', state, 'reported', 1)
  if is_closed() then
    redis.call('EXPIRE', state, ARGV[4])
    redis.call('EXPIRE', history, ARGV[4])
  else
    close_if_complete()
  end
  redis.call('HSET', run, RUN.reported, 1)
  redis.call('ZREM', KEYS[4], ARGV[5])
  redis.call('ZADD', KEYS[5], 0, ARGV[5])
  redis.call('ZREM', KEYS[6], ARGV[6])
  redis.call('HDEL', KEYS[7], ARGV[6])
  for _, key in ipairs(redis.call('SMEMBERS', KEYS[9])) do redis.call('EXPIRE', key, ARGV[4]) end
  redis.call('EXPIRE', run, ARGV[4])
  for index = 9, #KEYS do redis.call('EXPIRE', KEYS[index], ARGV[4]) end
  if not redis.call('ZSCORE', KEYS[8], ARGV[5]) then return 0 end
  redis.call('ZADD', KEYS[8], now() + REPORT_LEASE, ARGV[5])
  return 1
end
