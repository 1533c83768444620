#!lua flags=allow-oom
-- Follow the store. Where its timeline is another than the one this group last saw, set the group back to
-- before all that was acknowledged since `keep` before that time: the new timeline may lack it. Only back.
-- One call, so that of several callers one sets it back, and nobody reads in between.
--
-- Not by the entries' age: after a backlog, an old entry may have been stored a moment ago. The marks of
-- trim.lua tell how far everything was acknowledged at a time; without one old enough, all that is left.
-- allow-oom: a full log must not keep what the store lost from coming back.
--
-- KEYS  1 stream, 2 marks (sorted set), 3 timelines (hash: group -> "<ms when last seen> <timeline>")
-- ARGV  1 group, 2 timeline, 3 keep ms
-- Reply 1 where the group was set back, else 0
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local known = redis.call('HGET', KEYS[3], ARGV[1]) or ''
local seen, timeline = string.match(known, '^(%d+) (.*)$')

local function parse(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function set_back()
  if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
  local cut = string.format('%.0f', tonumber(seen) - tonumber(ARGV[3]))
  local mark = redis.call('ZREVRANGEBYSCORE', KEYS[2], cut, '-inf', 'LIMIT', 0, 1)[1]
  local first = redis.call('XRANGE', KEYS[1], mark or '-', '+', 'COUNT', 1)[1]
  if not first then return 0 end
  local ms, seq = parse(first[1])
  if seq > 0 then seq = seq - 1 else ms = ms - 1 end
  for _, list in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #list, 2 do group[list[i]] = list[i + 1] end
    if group.name == ARGV[1] then
      local had_ms, had_seq = parse(group['last-delivered-id'])
      if ms > had_ms or (ms == had_ms and seq >= had_seq) then return 0 end
      redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], string.format('%.0f-%.0f', ms, seq))
      return 1
    end
  end
  return 0
end

local done = 0
if seen and timeline ~= ARGV[2] then done = set_back() end
-- Last: should anything fail above, the next call finds the old one and tries again.
redis.call('HSET', KEYS[3], ARGV[1], string.format('%.0f %s', now, ARGV[2]))
return done
