-- Publishes a message of which nothing is kept: once for each idempotency key.
--
-- KEYS  1 the caller's key; 2 the Pub/Sub channel (for its slot)
-- ARGV  1 the message's id; 2 its envelope; 3 whether it was tried before, as in append; 4 the hash of what was asked;
--       5 how long a key lives
-- Answers as append does, with nothing for an offset.
local known = redis.call('GET', KEYS[1])
if known then return string.sub(known, 1, 32) == ARGV[4] and string.sub(known, 33) or 0 end
if ARGV[3] == '2' then return 1 end
-- Set first, since that may be refused; what is published cannot be taken back.
redis.call('SET', KEYS[1], '', 'PX', ARGV[5])
local heard = redis.pcall('PUBLISH', KEYS[2], ARGV[2])
if type(heard) ~= 'number' then
  redis.call('DEL', KEYS[1])
  return heard
end
local answer = ARGV[1] .. string.rep('\0', 12) .. ':' .. heard
redis.call('SET', KEYS[1], ARGV[4] .. answer, 'PX', ARGV[5])
return answer
