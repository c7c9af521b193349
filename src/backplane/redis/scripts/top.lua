-- Where a stream stands. One that is behind what is known of it, or has another message there, was rolled back: it gets a
-- new epoch. So does one of another epoch that never replaced the one that is known: it is of older data, from before that
-- began. The meta's p has the latest eight that were replaced.
--
-- A new epoch is told to every node that listens: one that has compared already would hear of it with the next message.
--
-- KEYS  1 the stream, 2 its meta, 3 the Pub/Sub channel
-- ARGV  1 an epoch, should one begin; 2 the meta's life; 3 to 5 epoch, offset and tag of the position that is known;
--       6 the era
-- Answers epoch, offset and tag of the top, offset and tag of where the epoch began.
local stream, meta, known = KEYS[1], KEYS[2], tonumber(ARGV[4])
local found = redis.call('HMGET', meta, 'e', 'o', 'g', 'f', 'fg', 'p')
if not found[1] then
  begin(stream, meta, ARGV[1], ARGV[2], ARGV[6], ARGV[3])
  return redis.call('HMGET', meta, 'e', 'o', 'g', 'f', 'fg')
end
local replaced = found[6] or ''
local function fork(epochs)
  renew_epoch(meta, KEYS[3], ARGV[1], found[2], found[3], ARGV[6], epochs .. replaced)
  return {ARGV[1], found[2], found[3], found[2], found[3]}
end
if redis.call('PTTL', meta) < tonumber(ARGV[2]) then redis.call('PEXPIRE', meta, ARGV[2]) end
if found[1] ~= ARGV[3] then
  for i = 1, #replaced, 8 do
    if string.sub(replaced, i, i + 7) == ARGV[3] then return found end
  end
  return fork(ARGV[3] .. found[1])
end
local offset = tonumber(found[2])
local forked = offset < known or (offset == known and found[3] ~= ARGV[5])
if offset > known then
  local entry = redis.call('XRANGE', stream, '(' .. ARGV[4] .. '-0', '+', 'COUNT', 1)[1]
  -- Where the next one had to go it cannot be told.
  forked = entry and tonumber(string.match(entry[1], '^%d+')) == known + 1 and entry[2][4] ~= ARGV[5]
end
if forked then return fork(found[1]) end
return found
