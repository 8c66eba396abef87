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
--                      lines; with the keys: state, history, run, messages, outbox
--                      -> 1 to the caller that is to report the message
--   subscribe          source, connection options -> 1 when the log is to be tailed, 0 when it is closed already
--   claim              source, claim
--                      -> {position, connection options}; {} when the log is closed or a newer claim exists
--   close              source, claim, reason, time, the relay's final line or '' -> 1; 0 when the claim was lost
--   close_if_complete  '1' when the run's end is being reported, else '' -> 1 when the log is closed
-- include log_functions
local operation = ARGV[1]

local function lines_from(first)
  local lines = {}
  for index = first, #ARGV do lines[#lines + 1] = ARGV[index] end
  return lines
end

local function append_lines(index, name, source, claim, batch_position, first, last)
  local time, level, max_lines, max_bytes = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
  local current_claim, position, lines, bytes =
    select_log(KEYS[index], KEYS[index + 1], KEYS[index + 2], name, ARGV[3],
      'claim:' .. source, 'position:' .. source, 'lines', 'bytes')
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

select_log(KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[3])
if operation == 'append_message' then
  return append_message(ARGV[5], ARGV[6], lines_from(7))
elseif operation == 'message' then
  redis.call('PUBLISH', ARGV[7], ARGV[8])
  append_message(ARGV[5], ARGV[6], lines_from(12))
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
  close_if_complete(ARGV[4])
  return 1
elseif operation == 'close_if_complete' then
  if not run_exists(run) and redis.call('EXISTS', state) == 0 then return 0 end
  if ARGV[5] == '1' then redis.call('HSET', state, 'reported', 1) end
  return close_if_complete(ARGV[4])
end
