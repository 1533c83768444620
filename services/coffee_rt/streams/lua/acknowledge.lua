-- Acknowledge entries that were committed to a store of that timeline. None, where the log has since been
-- told of another (see follow.lua): that store may lack the commit, and the group was set back for it.
--
-- KEYS  1 stream, 2 timelines (hash: group -> "<ms when last seen> <timeline>")
-- ARGV  1 group, 2 timeline, 3.. entry ids
-- Reply how many were acknowledged
local known = redis.call('HGET', KEYS[2], ARGV[1])
if known and string.match(known, '^%d+ (.*)$') ~= ARGV[2] then return 0 end
local done = 0
-- `unpack` takes some thousands at a time.
for i = 3, #ARGV, 1000 do
  done = done + redis.call('XACK', KEYS[1], ARGV[1], unpack(ARGV, i, math.min(i + 999, #ARGV)))
end
return done
