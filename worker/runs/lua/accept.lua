-- Create a run once. A stop that came before the message ends it here.
-- KEYS: run, record, stop   ARGV: message, action, plugin, home queue, stopped result
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {'known', redis.call('HEXISTS', KEYS[1], 'end'), redis.call('HGET', KEYS[1], 'position')}
end
local now = redis.call('TIME')[1]
redis.call('HSET', KEYS[1], 'message', ARGV[1], 'queue', ARGV[4], 'position', 0)
redis.call('HSET', KEYS[2], 'action', ARGV[2], 'plugin', ARGV[3], 'status', 'PENDING', 'step', '',
  'overall', 0, 'success', 0, 'failed', 0, 'total', 0, 'started', now, 'updated', now, 'error', '')
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[1], 'end', ARGV[5])
  redis.call('HSET', KEYS[2], 'status', 'STOPPED', 'error', 'stopped')
  return {'stopped', 1, '0'}
end
return {'accepted', 0, '0'}
