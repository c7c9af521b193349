-- The era that streams are of: what began before it may have lost what no node knows of.
--
-- KEYS  1 the era
-- ARGV  1 the node's
-- Answers the later of the two, which is kept.
local kept, own = tonumber(redis.call('GET', KEYS[1]) or 0), tonumber(ARGV[1])
if kept >= own then return kept end
redis.call('SET', KEYS[1], ARGV[1])
return own
