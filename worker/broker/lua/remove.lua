-- Acknowledge: the message is gone for good. KEYS: held, due. ARGV: tag.
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('HDEL', KEYS[1], ARGV[1])
