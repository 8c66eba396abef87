-- The message of a deployment of this room's pre-processor was read: it may be what came of the dispatch.
-- KEYS: room
if redis.call('HEXISTS', KEYS[1], 'sent') == 0 or redis.call('HEXISTS', KEYS[1], 'job') == 1 then return 0 end
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'sent', time[1] + time[2] / 1e6)
return 1
