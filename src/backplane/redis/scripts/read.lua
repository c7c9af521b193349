-- A page of a stream.
--
-- KEYS  1 the stream, 2 its meta
-- ARGV  1 an epoch, should one begin; 2 the meta's life; 3 the offset behind which it begins; 4 how many entries at most; 5 the era
-- Answers epoch, offset and tag of the top, offset and tag of where the epoch began; then offset, predecessor and envelope
-- of each entry.
local stream, meta = KEYS[1], KEYS[2]
local found = redis.call('HMGET', meta, 'e', 'o', 'g', 'f', 'fg')
if not found[1] then
  begin(stream, meta, ARGV[1], ARGV[2], ARGV[5])
  found = redis.call('HMGET', meta, 'e', 'o', 'g', 'f', 'fg')
end
for _, entry in ipairs(redis.call('XRANGE', stream, '(' .. ARGV[3] .. '-0', '+', 'COUNT', ARGV[4])) do
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = string.match(entry[1], '^%d+'), entry[2][4], entry[2][6]
end
return found
