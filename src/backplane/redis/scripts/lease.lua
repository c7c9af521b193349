-- Takes tokens and slots of the fleet's handshake budget; the same as Schedule::lease in budget.rs. Times are in Unix
-- microseconds, by Redis's clock.
--
-- KEYS  1 when the next token is free
-- ARGV  1 from one token to the next; 2 the burst; 3 the horizon; 4 tokens and 5 slots that are wanted
-- Answers the tokens, the slots, the time of the first slot, when the next token is free, and the clock.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, burst, horizon = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local free = tonumber(redis.call('GET', KEYS[1]) or '') or 0
-- The clock was turned back.
if free > now + horizon + 2 * interval then free = 0 end
free = math.max(free, now - burst)
local function most(room, wanted)
  if room < 0 then return 0 end
  return math.min(math.floor(room / interval) + 1, tonumber(wanted))
end
local tokens = most(now - free, ARGV[4])
free = free + tokens * interval
local first = math.max(free, now)
local slots = most(now + horizon - first, ARGV[5])
if slots > 0 then free = first + slots * interval end
local life = math.max(free - now, 0) / 1000 + burst / 1000 + 1000
redis.call('SET', KEYS[1], string.format('%.0f', free), 'PX', string.format('%.0f', life))
return {tokens, slots, string.format('%.0f', first), string.format('%.0f', free), string.format('%.0f', now)}
