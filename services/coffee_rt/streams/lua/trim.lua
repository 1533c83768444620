#!lua flags=allow-oom
-- Remove what every group acknowledged at least `keep` milliseconds ago. One call, so that an entry
-- delivered meanwhile can't be taken for an acknowledged one.
--
-- A stream doesn't say when an entry was acknowledged. So each call leaves a mark (time -> lowest
-- unacknowledged id) and the trim goes to the newest mark old enough, never above today's bound.
-- allow-oom: the mark is a write of its own, and what frees memory must run when there is none.
--
-- KEYS  1 stream, 2 marks (sorted set)
-- ARGV  1 keep ms, 2 entries removed at most, 3.. registered groups
-- Reply removed, or the name of a registered group the stream does not have (nothing is removed then)
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end

local function after(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return {tonumber(ms), tonumber(seq) + 1}
end
local function parse(id)
  local ms, seq = string.match(id, '^(%d+)%-(%d+)$')
  return {tonumber(ms), tonumber(seq)}
end
local function lower(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  return a[2] < b[2]
end

local bound, present = nil, {}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local facts = {}
  for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
  present[facts.name] = true
  local low = after(facts['last-delivered-id'])
  if facts.pending > 0 then
    local pending = parse(redis.call('XPENDING', KEYS[1], facts.name)[2])
    if lower(pending, low) then low = pending end
  end
  if not bound or lower(low, bound) then bound = low end
end
for i = 3, #ARGV do
  if not present[ARGV[i]] then return ARGV[i] end
end
if not bound then return 0 end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local keep = tonumber(ARGV[1])
local text = string.format('%.0f-%.0f', bound[1], bound[2])
-- NX: the first time a bound was reached is what counts. A mark each 1/20 of the span is enough.
local newest = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
if not newest[2] or tonumber(newest[2]) <= now - keep / 20 then
  redis.call('ZADD', KEYS[2], 'NX', string.format('%.0f', now), text)
end
local marks = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - keep))
local mark = marks[#marks]
if not mark then return 0 end
if #marks > 1 then redis.call('ZREMRANGEBYRANK', KEYS[2], 0, #marks - 2) end
if lower(bound, parse(mark)) then mark = text end

-- `~ LIMIT` bounds the work of one call; where it was not reached, at most one node is left for `=`.
local limit = tonumber(ARGV[2])
local removed = redis.call('XTRIM', KEYS[1], 'MINID', '~', mark, 'LIMIT', limit)
if removed < limit - 200 then
  removed = removed + redis.call('XTRIM', KEYS[1], 'MINID', '=', mark)
end
return removed
