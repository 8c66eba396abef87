-- A poll begins, while there is polling.
-- KEYS: waiting list   ARGV: generation, redelivered
if redis.call('HGET', KEYS[1], 'polling') ~= '1' then return {'superseded', 0} end
return {claim_generation(KEYS[1], 'generation', 'polled', tonumber(ARGV[1]), ARGV[2] == '1')}
