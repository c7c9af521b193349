-- Part of other scripts: begins an epoch where a stream stands whose meta is missing or behind it; `replaced` is one that
-- is known to have been there. Answers its epoch, offset and tag.
local function begin(stream, meta, epoch, life, era, replaced)
  local offset, tag, bytes = 0, '\0\0\0\0', 0
  if redis.call('EXISTS', stream) == 1 then
    local known = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #known, 2 do
      if known[i] == 'last-generated-id' then offset = tonumber(string.match(known[i + 1], '^%d+')) end
    end
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+')) do
      bytes = bytes + #entry[2][6]
      if tonumber(string.match(entry[1], '^%d+')) == offset then tag = string.sub(entry[2][8], -4) end
    end
  end
  redis.call('HSET', meta, 'e', epoch, 'o', offset, 'g', tag, 'b', bytes, 'f', offset, 'fg', tag, 'a', 0, 'l', 0, 'x', 0, 'w', era)
  if replaced then redis.call('HSET', meta, 'p', replaced) end
  redis.call('PEXPIRE', meta, life)
  return epoch, offset, tag, bytes
end

-- Begins an epoch where a stream stands that goes on, and tells every node that listens; `replaced` are the epochs that
-- were there.
local function renew_epoch(meta, channel, epoch, offset, tag, era, replaced)
  redis.call('HSET', meta, 'e', epoch, 'f', offset, 'fg', tag, 'p', string.sub(replaced, 1, 64), 'w', era)
  redis.pcall('PUBLISH', channel, '\3')
end
