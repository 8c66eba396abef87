-- Create a run, once. A stop that came before the message ends it at once.
-- KEYS: run, record, stop   ARGV: message, action, plugin, queue of the run, end of a stopped run, priority or '',
--   seconds for which an ended run is kept, context of the trace or ''
-- Returns 'known', 'stopped' or 'accepted'.
if run_exists(KEYS[1]) then return 'known' end
local now = now_seconds()
redis.call('HSET', KEYS[1], RUN.message, ARGV[1], RUN.queue, ARGV[4], RUN.position, 0)
if ARGV[6] ~= '' then redis.call('HSET', KEYS[1], RUN.priority, ARGV[6]) end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], RUN.traceparent, ARGV[8]) end
redis.call('HSET', KEYS[2], 'action', ARGV[2], 'plugin', ARGV[3], 'status', 'PENDING', 'step', '',
  'overall', 0, 'success', 0, 'failed', 0, 'total', 0, 'started', now, 'updated', now, 'error', '')
publish_change(KEYS[2], {action = ARGV[2], plugin = ARGV[3], status = 'PENDING', step = '', overall = '0', success = '0',
  failed = '0', total = '0', started = now, updated = now, error = ''})
if redis.call('EXISTS', KEYS[3]) == 0 then return 'accepted' end
redis.call('HSET', KEYS[1], RUN.ended, ARGV[5])
redis.call('HSET', KEYS[2], 'status', 'STOPPED', 'error', 'stopped')
publish_change(KEYS[2], {status = 'STOPPED', error = 'stopped', updated = now})
pcall(keep_ended_run, KEYS[1], KEYS[2], ARGV[7])
return 'stopped'
