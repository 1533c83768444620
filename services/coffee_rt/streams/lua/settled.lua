-- Whether a group was delivered an entry and acknowledged it. One call: between two, a delivery could
-- hide in the gap. KEYS 1 stream; ARGV 1 group, 2 entry ms, 3 entry seq
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for _, list in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #list, 2 do group[list[i]] = list[i + 1] end
  if group.name == ARGV[1] then
    local ms, seq = string.match(group['last-delivered-id'], '^(%d+)%-(%d+)$')
    local wanted_ms, wanted_seq = tonumber(ARGV[2]), tonumber(ARGV[3])
    ms, seq = tonumber(ms), tonumber(seq)
    if ms < wanted_ms or (ms == wanted_ms and seq < wanted_seq) then return 0 end
    local id = ARGV[2] .. '-' .. ARGV[3]
    if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) > 0 then return 0 end
    return 1
  end
end
return 0
