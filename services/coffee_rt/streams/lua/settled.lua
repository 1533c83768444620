-- Whether a group was delivered an entry and acknowledged it. One call: between two, a delivery could
-- hide in the gap. And it must be that entry: a server that lost its newest ones gives later ids to others.
-- What is trimmed was acknowledged; what is missing above the first entry was lost.
-- KEYS 1 stream; ARGV 1 group, 2 entry ms, 3 entry seq, 4 batch id ("" when it is not known)
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
    local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
    if entry then
      for i = 1, #entry[2], 2 do
        if entry[2][i] == 'b' and ARGV[4] ~= '' and entry[2][i + 1] ~= ARGV[4] then return 0 end
      end
      return 1
    end
    local first = redis.call('XRANGE', KEYS[1], '-', id, 'COUNT', 1)[1]
    return first and 0 or 1
  end
end
return 0
