-- Moves a cursor forward.
--
-- KEYS  1 the user's cursors: by device, `*` for the shared one, `<epoch>:<offset>:<tag>:<ms of the last move>`, epoch and
--         tag in hex; 2 the meta of the user's stream
-- ARGV  1 the device; 2 to 4 epoch, offset and tag as they are stored; 5 the epoch's bytes; 6 how many devices at most;
--       7 the cursors' life
local cursors, device, epoch, offset, tag = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local cursor = redis.call('HGET', cursors, device)
if cursor then
  local e, o, g = string.match(cursor, '^(%x+):(%d+):(%x+):')
  local stays
  if e == epoch then
    stays = tonumber(o) >= tonumber(offset)
  else
    stays = e and redis.call('HGET', KEYS[2], 'e') ~= ARGV[5]
  end
  if stays then epoch, offset, tag = e, o, g end
end
redis.call('HSET', cursors, device, epoch .. ':' .. offset .. ':' .. tag .. ':' .. now)
redis.call('PEXPIRE', cursors, ARGV[7])
local most = tonumber(ARGV[6])
if not cursor and redis.call('HLEN', cursors) > most then
  local all, devices, silent, since = redis.call('HGETALL', cursors), 0, nil, math.huge
  for i = 1, #all, 2 do
    if all[i] ~= '*' then
      devices = devices + 1
      local moved = tonumber(string.match(all[i + 1], '(%d+)$') or 0)
      if moved < since and all[i] ~= device then silent, since = all[i], moved end
    end
  end
  if devices > most then redis.call('HDEL', cursors, silent) end
end
return 1
