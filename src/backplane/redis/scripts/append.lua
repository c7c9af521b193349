-- Appends a message to the stream of its address and publishes it: once, however often it is tried.
--
-- KEYS  1 the stream: entries `<offset>-0` with, in this order, t (time), p (the predecessor's tag), m (the sealed
--         envelope), i (the message's id)
--       2 its meta: e (epoch), o and g (offset and tag of the top), b (bytes), f and fg (where the epoch began), a (no
--         entry is older), l (the time of the latest that had to go), x (when the stream's life is renewed at the latest),
--         r (until when retries may have left markers), w (the era that its epoch is of)
--       3 the Pub/Sub channel
--       4 the marker of this message, which a retry leaves for a first attempt that comes late
--       5 the caller's idempotency key, if there is one
-- ARGV  1 an epoch, should one begin; 2 the message's id; 3 its time; 4 its envelope; 5 to 7 what is kept: messages,
--       milliseconds, bytes; 8 the meta's life; 9 '1' = it was tried before,
--       '2' = by another run of Redis, which may have lost it; 10 how long a marker lives;
--       11 the hash of what was asked; 12 how long an idempotency key lives; 13 the era
-- Answers the id, epoch and tag, then `<offset>:<listeners>`; 0 = the key was used for something else; 1 = it cannot be
-- known whether it was appended before.
--
-- The first write is one that Redis may refuse (OOM, READONLY, MISCONF). Once it is done nothing fails: an error means
-- that nothing was done.
local call, pcall = redis.call, redis.pcall
local stream, meta, channel, marker, key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, time, sealed, life = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[8]
local most, age, room = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local again, elsewhere = ARGV[9] ~= '0', ARGV[9] == '2'

if key then
  local known = call('GET', key)
  if known then return string.sub(known, 1, 32) == ARGV[11] and string.sub(known, 33) or 0 end
  if elsewhere then return 1 end
end

local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = call('HMGET', meta, 'e', 'o', 'g', 'b', 'a', 'l', 'x', 'r', 'w', 'p')
local epoch, offset, tag, bytes = found[1], tonumber(found[2]), found[3], tonumber(found[4])
local oldest, latest, renew = tonumber(found[5] or 0), tonumber(found[6] or 0), tonumber(found[7] or 0)

if not epoch then
  epoch, offset, tag, bytes = begin(stream, meta, ARGV[1], life, ARGV[13])
elseif tonumber(found[9] or 0) < tonumber(ARGV[13]) then
  renew_epoch(meta, channel, ARGV[1], offset, tag, ARGV[13], epoch .. (found[10] or ''))
  epoch = ARGV[1]
end

if not key then
  if again or found[8] and tonumber(found[8]) > now then
    local known = call('GET', marker)
    if known then return known end
  end
  if again then
    local last, done = '+', false
    repeat
      local page = call('XREVRANGE', stream, last, '-', 'COUNT', 64)
      for _, entry in ipairs(page) do
        if entry[2][8] == id then
          local at = string.match(entry[1], '^%d+')
          local heard = call('PUBSUB', 'NUMSUB', channel)[2]
          return id .. epoch .. string.sub(id, -4) .. at .. ':' .. heard
        end
        done = tonumber(entry[2][2]) < time - tonumber(ARGV[10])
        if done then break end
        last = '(' .. entry[1]
      end
    until done or #page < 64
    -- What had to go may have been this one only if it was not older.
    if elsewhere or not done and latest >= time then return 1 end
  end
end

local count = call('XLEN', stream)
if count == 0 then bytes, oldest, renew = 0, time, 0 end
bytes = bytes + #sealed
local from, size, low = '-', 1, nil
while count > 0 and (count >= most or bytes > room or oldest + age < now) do
  local page = call('XRANGE', stream, from, '+', 'COUNT', size)
  if #page == 0 then break end
  for _, entry in ipairs(page) do
    oldest = tonumber(entry[2][2])
    if count < most and bytes <= room and oldest + age >= now then break end
    count, bytes = count - 1, bytes - #entry[2][6]
    latest, from = math.max(latest, oldest), '(' .. entry[1]
    low = tonumber(string.match(entry[1], '^%d+')) + 1
  end
  size = 64
end
if time < oldest then oldest = time end

local added
if low then
  added = pcall('XADD', stream, 'MINID', '=', low .. '-0', offset + 1, 't', ARGV[3], 'p', tag, 'm', sealed, 'i', id)
else
  added = pcall('XADD', stream, offset + 1, 't', ARGV[3], 'p', tag, 'm', sealed, 'i', id)
end
if type(added) == 'table' then
  if not string.find(added.err, 'equal or smaller', 1, true) then return added end
  -- It is above its meta.
  epoch, offset, tag, bytes = begin(stream, meta, ARGV[1], life, ARGV[13], string.sub(epoch .. (redis.call('HGET', meta, 'p') or ''), 1, 64))
  bytes, renew = bytes + #sealed, 0
  call('XADD', stream, offset + 1, 't', ARGV[3], 'p', tag, 'm', sealed, 'i', id)
end

local previous = tag
offset, tag = offset + 1, string.sub(id, -4)
call('HSET', meta, 'o', offset, 'g', tag, 'b', bytes, 'a', oldest, 'l', latest)
if renew < now + age then
  renew = now + age + math.floor(age / 8)
  call('HSET', meta, 'x', renew)
  call('PEXPIREAT', stream, renew)
  call('PEXPIRE', meta, math.max(tonumber(life), 2 * age))
end
local heard = redis.pcall('PUBLISH', channel, '\2' .. epoch .. previous .. offset .. ':' .. sealed)
if type(heard) ~= 'number' then heard = 0 end
local answer = id .. epoch .. tag .. offset .. ':' .. heard
if key then
  call('SET', key, ARGV[11] .. answer, 'PX', ARGV[12])
elseif again then
  call('SET', marker, answer, 'PX', ARGV[10])
  call('HSET', meta, 'r', now + ARGV[10])
end
return answer
