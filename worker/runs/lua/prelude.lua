-- What scripts about runs share; stands before each of them, after the fields of a run's hash (`RUN`).

local function run_exists(run) return redis.call('EXISTS', run) == 1 end
local function run_ended(run) return redis.call('HEXISTS', run, RUN.ended) == 1 end
local function run_reported(run) return redis.call('HEXISTS', run, RUN.reported) == 1 end
local function run_open(run) return run_exists(run) and not run_ended(run) end

-- Redis's clock, in seconds: with a fraction, or whole and as text.
local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1e6
end
local function now_seconds() return redis.call('TIME')[1] end

-- What has changed of a run's public record, as text by field, for whoever shows all runs: one channel has the changes of
-- all. Its name and the job stand in the record's key. With the time, by which a listener sees how late it is.
local function publish_change(record, change)
  local prefix, job = string.match(record, '^(.*):jobs:{(.*)}$')
  if not job then return end
  change.job, change.at = job, now()
  redis.call('PUBLISH', prefix .. ':changes', cjson.encode(change))
end

-- The run waits in a list (a sorted set of jobs), which it leaves when it ends; its public record says for what. Only
-- older workers read how often its step was claimed, and one that does not know joins the list once more. `deadline` is
-- until when it waits at most, where that is known.
local function join_waitlist(run, list, record, waiting_for, deadline)
  redis.call('HSET', run, RUN.waits_in, list)
  if redis.call('HSET', record, 'waiting_for', waiting_for) == 1 then
    publish_change(record, {waiting_for = waiting_for, waiting_since = now_seconds(), waiting_until = deadline})
  end
  redis.call('HDEL', run, RUN.begun_prefix .. (redis.call('HGET', run, RUN.step) or ''))
end

-- The fields of the record that say when a step begins, which is now: in milliseconds since the run was accepted, for short
-- numbers take little. Of the step before, which a worker of an older release may have begun, at least that it began before
-- that: a negative number.
local function step_times(record, before, step)
  local prefix = RUN.step_time_prefix
  local started, known = unpack(redis.call('HMGET', record, 'started', prefix .. (before or '')))
  local time = string.format('%.0f', (now() - (tonumber(started) or 0)) * 1000)
  if not before or known then return {prefix .. step, time} end
  return {prefix .. before, '-' .. time, prefix .. step, time}
end

-- A heartbeat: the member is overdue when there is no other within so many seconds.
local function record_heartbeat(heartbeats, overdue_counts, member, seconds)
  redis.call('ZADD', heartbeats, now_seconds() + seconds, member)
  redis.call('HDEL', overdue_counts, member)
end

-- The run stands at another step, of this position and own queue. What is known of the step before is of no use any more:
-- a run that waits is to be small. Returns whether it stood there before.
local function move_on(run, record, step, position, queue)
  local before, updated = redis.call('HGET', run, RUN.step), now_seconds()
  redis.call('HSET', run, RUN.position, position, RUN.step, step)
  redis.call('HSET', record, 'step', step, 'updated', updated)
  if before ~= step then
    redis.call('HDEL', run, RUN.begun_prefix .. (before or ''), RUN.step_queue)
    redis.call('HDEL', record, 'waiting_for')
    redis.call('HSET', record, unpack(step_times(record, before, step)))
    publish_change(record, {step = step, updated = updated, waiting_for = ''})
  end
  if queue ~= '' then redis.call('HSET', run, RUN.step_queue, queue) end
  return before == step
end

-- Publish collected messages. KEYS from `key` on: for each message the queue's list or, for one with a countdown, its
-- delayed messages, and the time at which an earlier one was last added to those of any queue. ARGV from `argument` on:
-- for each message RPUSH, LPUSH or ZADD, the countdown in seconds, and the message.
local function publish_messages(key, argument)
  for index = key, #KEYS, 2 do
    local command, seconds, message = ARGV[argument], ARGV[argument + 1], ARGV[argument + 2]
    argument = argument + 3
    if command == 'ZADD' then
      local time = now()
      redis.call('ZADD', KEYS[index], time + seconds, message)
      if redis.call('ZRANGE', KEYS[index], 0, 0)[1] == message then
        redis.call('SET', KEYS[index + 1], time, 'EX', 3600)
      end
    else
      redis.call(command, KEYS[index], message)
    end
  end
end

-- The outbox has the jobs of which something is to be reported, by the time at which any worker may send the report:
-- until then it is the matter of the one that entered the job. Both return 1 to a caller that is to send it, `delay`
-- seconds from now; what changes while a job is in the outbox goes with the report that is under way.
local REPORT_LEASE = 5
local function enter_outbox(outbox, job, delay)
  return redis.call('ZADD', outbox, 'NX', now() + delay + REPORT_LEASE, job)
end
-- The webhook hears of an end once the backend has it: `mark_reported` of `log.lua` lets it be sent. Workers of the previous
-- release do not, so it is looked at again after a while.
local WEBHOOK_LOOK = 60
-- Where the webhook is taken off the settings nobody looks any more, and what is left goes after so many seconds.
local WEBHOOKS_KEPT = 30 * 24 * 60 * 60
local function keep_webhooks(webhooks) redis.call('EXPIRE', webhooks, WEBHOOKS_KEPT) end
local function enter_webhook(webhooks, job)
  redis.call('ZADD', webhooks, now() + WEBHOOK_LOOK, job)
  keep_webhooks(webhooks)
end
local function has_changes(run)
  local version, version_sent = unpack(redis.call('HMGET', run, RUN.version, RUN.version_sent))
  return version and version ~= version_sent
end
local function schedule_report(run, outbox, job, delay)
  -- It begins with the time, because it is removed with the report and must not have an old value again.
  if redis.call('HINCRBY', run, RUN.version, 1) == 1 then
    redis.call('HSET', run, RUN.version, string.format('%.0f', now() * 1e6))
  end
  return enter_outbox(outbox, job, delay)
end

-- Redis allocates 4 KB for a stream of one short entry; a stream that is read anew has the length of its entries.
-- A user of Redis without the right to do that keeps the 4 KB.
local function shrink(stream)
  local left, content = redis.call('PTTL', stream), redis.pcall('DUMP', stream)
  if type(content) == 'string' then redis.pcall('RESTORE', stream, math.max(left, 0), content, 'REPLACE') end
end

-- A poll begins: only the newest generation goes on, so that copies of older polls end here. An advance is stored
-- before the next poll is published, and a worker may die in between: the redelivered older poll then publishes the
-- newer one, unless that one has begun. Returns 'claimed', 'superseded' or 'republish', and the newest generation.
local function claim_generation(polls, newest_field, claimed_field, generation, redelivered)
  local newest = tonumber(redis.call('HGET', polls, newest_field) or '0')
  if generation < newest then
    local claimed = tonumber(redis.call('HGET', polls, claimed_field) or '0')
    return redelivered and claimed < newest and 'republish' or 'superseded', newest
  end
  -- Where there is no generation yet there may be no hash, and one that is created here would never expire.
  if newest > 0 then redis.call('HSET', polls, claimed_field, generation) end
  return 'claimed', generation
end

-- The next poll gets the generation after this one (without one, after the newest), unless a newer one is known.
-- Returns the newest.
local function advance_generation(polls, newest_field, generation)
  local newest = tonumber(redis.call('HGET', polls, newest_field) or '0')
  generation = generation or newest
  if generation < newest then return newest end
  redis.call('HSET', polls, newest_field, generation + 1)
  return generation + 1
end

-- The deliveries of a step that have begun in a generation and not ended: the generation and their tokens. One that
-- has ended takes its token back, so the tokens that stay are of deliveries that died, or of one that is suspended.
-- Returns how many there are beside this one. A client whose answer got lost begins again with the same token.
local function begin_delivery(polls, field, generation, token)
  local kept, died = string.format('%d', generation), 0
  local stored = redis.call('HGET', polls, field) or ''
  if string.match(stored, '^%d+') == kept then
    for each in string.gmatch(stored, ' (%w+)') do
      if each ~= token then kept, died = kept .. ' ' .. each, died + 1 end
    end
  end
  redis.call('HSET', polls, field, kept .. ' ' .. token)
  return died
end
local function end_delivery(polls, field, token)
  local stored = redis.call('HGET', polls, field)
  if not stored then return end
  local kept = string.gsub(stored, ' ' .. token, '')
  if string.find(kept, ' ') then redis.call('HSET', polls, field, kept) else redis.call('HDEL', polls, field) end
end

-- A step has done something that stays, so what died before it says nothing any more.
local function forget_deliveries(polls, field)
  if field ~= '' then redis.call('HDEL', polls, field) end
end

-- Ended runs are kept for longer than the keys of their jobs: what is known of each, all its failed tasks, and sorted
-- sets of their jobs by the time of the end, one of all and one a status. Their names come from that of the record.
local END_STATUSES = {'SUCCEEDED', 'FAILED', 'STOPPED'}
local function ended_keys(record)
  local prefix, job = string.match(record, '^(.*):jobs:{(.*)}$')
  local all = prefix .. ':ended'
  local kept = all .. ':{' .. job .. '}'
  return job, all, kept, kept .. ':failed_tasks'
end
-- Beside them the bytes of Redis that each needs, about, and their sum, so that what is too much is forgotten without
-- looking at the rest. No job has a name with a colon.
local ENDED_RUN_BYTES, FAILED_TASK_BYTES, ENDED_RUNS_TOTAL = 512, 6, ':total'
local function ended_run_sizes(all) return all .. ':sizes' end
-- Without HINCRBY: a value that is damaged counts as 0, and must not keep a run from ending.
local function add_to_total(sizes, field, bytes)
  local total = (tonumber(redis.call('HGET', sizes, field) or 0) or 0) + bytes
  redis.call('HSET', sizes, field, string.format('%.0f', total))
  return total
end
local function forget_ended_run_size(all, job)
  local sizes = ended_run_sizes(all)
  local counted = redis.call('HGET', sizes, job)
  if not counted then return end
  redis.call('HDEL', sizes, job)
  if add_to_total(sizes, ENDED_RUNS_TOTAL, -(tonumber(counted) or 0)) <= 0 then redis.call('DEL', sizes) end
end
local function record_ended_run_size(all, job, bytes)
  local sizes = ended_run_sizes(all)
  if redis.call('HSETNX', sizes, job, bytes) == 0 then
    forget_ended_run_size(all, job)
    redis.call('HSET', sizes, job, bytes)
  end
  add_to_total(sizes, ENDED_RUNS_TOTAL, bytes)
end
local function is_kept(record)
  local _, _, kept = ended_keys(record)
  return redis.call('EXISTS', kept) == 1
end
local function forget_ended_run(record)
  local job, all, kept, failed_tasks = ended_keys(record)
  redis.call('UNLINK', kept, failed_tasks)
  redis.call('ZREM', all, job)
  for _, status in ipairs(END_STATUSES) do redis.call('ZREM', all .. ':' .. status, job) end
  forget_ended_run_size(all, job)
end
-- The keys of an earlier run of this job have expired; what is kept of it would be mixed with this one.
local function forget_earlier_run(record)
  if is_kept(record) then forget_ended_run(record) end
end
-- What is kept expires by itself after so many seconds: nobody may be left to forget it, such as after the return to a
-- release that does not know it. The lists expire, too, but their expiry is renewed by maintenance, for all at once.
local function keep_ended_run(run, record, seconds)
  forget_earlier_run(record)  -- of a run that was never RUNNING
  local job, all, kept, failed_tasks = ended_keys(record)
  local found, content, time = redis.call('HGETALL', record), {}, now()
  for index = 1, #found, 2 do content[found[index]] = found[index + 1] end
  content.message = redis.call('HGET', run, RUN.message) or nil
  local text = cjson.encode(content)
  redis.call('SET', kept, text, 'EX', seconds)
  local failed = redis.call('LLEN', failed_tasks)
  if failed > 0 then
    -- They do not expire with the run any more.
    redis.call('SREM', record .. ':keys', failed_tasks)
    redis.call('EXPIRE', failed_tasks, seconds)
  end
  redis.call('ZADD', all, time, job)
  redis.call('ZADD', all .. ':' .. content.status, time, job)
  record_ended_run_size(all, job, ENDED_RUN_BYTES + #text + FAILED_TASK_BYTES * failed)
end
