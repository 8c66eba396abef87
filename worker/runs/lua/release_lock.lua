-- KEYS: lock, polls or none   ARGV: token, field of the step's deliveries or none
if KEYS[2] then end_delivery(KEYS[2], ARGV[2], ARGV[1]) end
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
