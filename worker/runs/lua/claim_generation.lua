-- KEYS: polls   ARGV: field of the newest generation, field of the claimed one, generation, redelivered
return {claim_generation(KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1')}
