-- Where a session may begin in a stream, of which everything that is too old goes first.
--
-- KEYS  1 the stream, 2 its meta, 3 the user's cursors, 4 the Pub/Sub channel
-- ARGV  1 an epoch, should one begin; 2 the meta's life; 3 milliseconds that are kept; 4 the offset asked for, '' = none,
--       'cursor' = that of the cursor; 5 the era; 6 the device whose cursor counts, if there is one
-- Answers epoch, offset and tag of the top, offset and tag of where the epoch began; offset and predecessor of the oldest
-- entry, and of the next behind the offset; the cursor, and 1 if it is the device's own.
local stream, meta = KEYS[1], KEYS[2]
local function look() return redis.call('HMGET', meta, 'e', 'o', 'g', 'f', 'fg', 'b', 'l', 'w', 'p') end
local found = look()
if not found[1] then
  begin(stream, meta, ARGV[1], ARGV[2], ARGV[5])
  found = look()
elseif tonumber(found[8] or 0) < tonumber(ARGV[5]) then
  renew_epoch(meta, KEYS[4], ARGV[1], found[2], found[3], ARGV[5], found[1] .. (found[9] or ''))
  found = look()
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local age = tonumber(ARGV[3])
redis.call('PEXPIRE', meta, math.max(tonumber(ARGV[2]), 2 * age))

local from, size, bytes, latest, oldest, low = '-', 1, tonumber(found[6]), tonumber(found[7] or 0), false, nil
repeat
  local page = redis.call('XRANGE', stream, from, '+', 'COUNT', size)
  for _, entry in ipairs(page) do
    local time = tonumber(entry[2][2])
    if time + age >= now then oldest = entry break end
    bytes, latest, from = bytes - #entry[2][6], math.max(latest, time), '(' .. entry[1]
    low = tonumber(string.match(entry[1], '^%d+')) + 1
  end
  size = 64
until oldest or #page == 0
if low then
  redis.call('XTRIM', stream, 'MINID', '=', low .. '-0')
  redis.call('HSET', meta, 'b', oldest and bytes or 0, 'a', oldest and oldest[2][2] or 0, 'l', latest)
end

local asked, cursor, own = ARGV[4], false, 0
if asked == 'cursor' then
  if ARGV[6] then cursor = redis.call('HGET', KEYS[3], ARGV[6]) end
  own = cursor and 1 or 0
  cursor = cursor or redis.call('HGET', KEYS[3], '*')
  asked = cursor and string.match(cursor, ':(%d+):') or ''
end
local next = asked ~= '' and redis.call('XRANGE', stream, '(' .. asked .. '-0', '+', 'COUNT', 1)[1]
local function place(entry)
  if not entry then return false, false end
  return string.match(entry[1], '^%d+'), entry[2][4]
end
local first, before = place(oldest)
local second, between = place(next)
return {found[1], found[2], found[3], found[4], found[5], first, before, second, between, cursor, own}
