-- Messages that were not delivered come before the others again, while a report will send them.
-- KEYS: run, messages   ARGV: messages, the last one first
if run_exists(KEYS[1]) and not run_reported(KEYS[1]) then redis.call('LPUSH', KEYS[2], unpack(ARGV)) end
