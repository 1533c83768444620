-- What groups have not acknowledged on one shard, from one moment. Read-only.
--
-- KEYS  1 stream, 2 counter
-- Reply counter, now ms, length, first id or "", last generated id, counter and records of the first,
--       then for each group: {name, pending, lowest unacknowledged id or "", its counter, its records,
--       first undelivered id or "", its counter, its records, last delivered id}
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
local counter = redis.call('GET', KEYS[2]) or '0'
if redis.call('EXISTS', KEYS[1]) == 0 then return {counter, now, 0, '', '0-0', counter, 0} end

local function facts_of(list)
  local facts = {}
  for i = 1, #list, 2 do facts[list[i]] = list[i + 1] end
  return facts
end
local function is_number(text) return text and #text < 16 and string.match(text, '^%d+$') end
-- Fields of the first entry from an id on that counts records. Those of strangers don't; after so many in
-- a row nothing of ours is taken to follow.
local function counted_from(id)
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], id, '+', 'COUNT', 100)) do
    local fields = facts_of(entry[2])
    if is_number(fields.c) then return fields end
  end
  return {c = counter}
end
local function is_number(text)
  return text and #text < 16 and string.match(text, '^%d+$')
end
-- Id, counter and records of the first entry from an id on. A stranger's entry has no counter: then they are
-- told of the first after it that has one, or of nobody's records at the end of the count. `is_gap_counted`: what a gap entry tells of
-- counts as its records. Counter - records is the counter just below it, also where a stranger wrote it.
local function entry_from(id, is_gap_counted)
  local entry = redis.call('XRANGE', KEYS[1], id, '+', 'COUNT', 1)[1]
  if not entry then return {'', '0', '0'} end
  local fields = facts_of(entry[2])
  if not is_number(fields.c) then fields = counted_from(entry[1]) end
  local records = is_number(fields.n) and fields.n or '0'
  local from, to = string.match(fields.g or '', '^(%d+)%-(%d+)$')
  if from and is_gap_counted then records = string.format('%.0f', tonumber(to) - tonumber(from)) end
  return {entry[1], fields.c, records}
end
local function is_lower(a, b)
  local ams, aseq = string.match(a, '^(%d+)%-(%d+)$')
  local bms, bseq = string.match(b, '^(%d+)%-(%d+)$')
  ams, bms = tonumber(ams), tonumber(bms)
  if ams ~= bms then return ams < bms end
  return tonumber(aseq) < tonumber(bseq)
end

local stream = facts_of(redis.call('XINFO', 'STREAM', KEYS[1]))
local first = stream['first-entry'] and stream['first-entry'][1] or ''
local oldest = entry_from('-', true)
if oldest[1] == '' then oldest = {'', counter, '0'} end
local reply = {counter, now, stream.length, first, stream['last-generated-id'], oldest[2], oldest[3]}
for _, list in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = facts_of(list)
  local undelivered = entry_from('(' .. group['last-delivered-id'], false)
  local lowest = entry_from('(' .. group['last-delivered-id'], true)
  if group.pending > 0 then
    local pending = redis.call('XPENDING', KEYS[1], group.name)[2]
    if lowest[1] == '' or is_lower(pending, lowest[1]) then
      lowest = entry_from(pending, true)
      if lowest[1] == '' then lowest = {pending, counter, '0'} end
    end
  end
  reply[#reply + 1] = {group.name, group.pending, lowest[1], lowest[2], lowest[3],
    undelivered[1], undelivered[2], undelivered[3], group['last-delivered-id']}
end
return reply
