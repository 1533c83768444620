-- Remove consumers that hold nothing. DELCONSUMER alone would drop what is still pending for them.
--
-- KEYS  1 stream; ARGV 1 group, 2 consumer or "" for all, 3 idle milliseconds at least
-- Reply how many were removed
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local removed = 0
for _, list in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #list, 2 do group[list[i]] = list[i + 1] end
  if group.name == ARGV[1] then
    for _, facts in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
      local consumer = {}
      for i = 1, #facts, 2 do consumer[facts[i]] = facts[i + 1] end
      local is_meant = ARGV[2] == '' or ARGV[2] == consumer.name
      if is_meant and consumer.pending == 0 and consumer.idle >= tonumber(ARGV[3]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
        removed = removed + 1
      end
    end
  end
end
return removed
