-- A worker is about to send the report of a run: one at a time, and one PATCH in so many seconds.
-- KEYS: run, progress, record, messages, lock, outbox, patched
-- ARGV: job, token, lock ms, seconds between two PATCHes, most messages
-- Returns 'nothing' (to be sent), 'locked', 'early' and the seconds to wait, or 'claimed' and the time, the hash of the
-- run, its progress, its public record, and messages.
local run, outbox, job = KEYS[1], KEYS[6], ARGV[1]
local stored, fields = redis.call('HGETALL', run), {}
for index = 1, #stored, 2 do fields[stored[index]] = stored[index + 1] end
if #stored == 0 or fields[RUN.reported] then
  redis.call('ZREM', outbox, job)
  return {'nothing'}
end
-- A client whose answer got lost asks again with the same token.
if not redis.call('SET', KEYS[5], ARGV[2], 'NX', 'PX', ARGV[3]) and redis.call('GET', KEYS[5]) ~= ARGV[2] then
  return {'locked'}
end
local time, ended, version = now(), fields[RUN.ended], fields[RUN.version]
local changed = ended or version and version ~= fields[RUN.version_sent]
if not changed and redis.call('LLEN', KEYS[4]) == 0 then
  redis.call('DEL', KEYS[5])
  redis.call('ZREM', outbox, job)
  redis.call('HDEL', run, RUN.report_scheduled_at)
  return {'nothing'}
end
local wait = ended and 0 or math.max(redis.call('PTTL', KEYS[7]) / 1000, 0)
redis.call('ZADD', outbox, time + wait + REPORT_LEASE, job)
if wait > 0 then
  redis.call('DEL', KEYS[5])
  return {'early', tostring(wait)}
end
if changed and not ended then redis.call('SET', KEYS[7], 1, 'PX', ARGV[4] * 1000) end
-- Removed first, because users would see a repetition.
local messages = redis.call('LPOP', KEYS[4], ARGV[5]) or {}
return {'claimed', tostring(time), stored, redis.call('HGETALL', KEYS[2]), redis.call('HGETALL', KEYS[3]), messages}
