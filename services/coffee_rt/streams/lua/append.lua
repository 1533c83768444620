-- Append one flush to one shard: GET every key, XADD, then SET keys.
-- The order matters: a script is not rolled back, so a key set before a failing XADD would be burnt.
--
-- KEYS  1 stream, 2 counter, 3.. keys of the keyed records, in the order of the records
-- ARGV  1 wire version, 2 batch id, 3 highest counter this producer has answered,
--       4 key window ms, 5 client id window ms, 6 trace context or "",
--       7 number of unkeyed records, 8 their bytes joined (with the batch header when no keyed follow)
--       then for each keyed record: its bytes, order id .. claim (32 bytes),
--       kinds of its keys: k (Idempotency-Key), o (client's order id), ko
-- Reply entry id ("" when nothing was new), counter, then for each keyed record:
--       0 new, i > 0 same key as the i-th keyed record of this flush, a string: value of the key found
local stream, count_key = KEYS[1], KEYS[2]
local counter = tonumber(redis.call('GET', count_key) or '0')
local batch, trace = ARGV[2], ARGV[6]
local key_window, client_id_window = ARGV[4], ARGV[5]
local unkeyed = tonumber(ARGV[7])
local keyed = (#ARGV - 8) / 3

-- An acknowledged counter above ours: a failover lost entries. Say so in the log itself.
local highest = tonumber(ARGV[3])
if counter < highest then
  local gap_id = string.sub(batch, 1, 15) .. string.char(255 - string.byte(batch, 16))
  local to = string.format('%.0f', highest)
  redis.call('XADD', stream, '*', 'v', ARGV[1], 'b', gap_id, 'c', to, 'n', '0',
    'g', string.format('%.0f-%.0f', counter, highest))
  redis.call('SET', count_key, to)
  counter = highest
end

local reply = {'', ''}
local parts, seen = {}, {}
-- What to SET at the end, in parallel arrays (tables would cost more than the SETs): key, what it will
-- point at (index of a record of this flush, or the value found), window.
local names, sources, spans = {}, {}, {}
local touched, touched_window = nil, nil

if keyed > 0 then
  local found = redis.call('MGET', unpack(KEYS, 3))
  local key, at = 2, 9
  for i = 1, keyed do
    local kinds = ARGV[at + 2]
    local first = key + 1
    local window = kinds == 'o' and client_id_window or key_window
    local hit = found[first - 2] or seen[KEYS[first]]
    local is_alias = false
    if found[first - 2] and not touched then
      touched, touched_window = KEYS[first], window
    end
    key = first
    if kinds == 'ko' then
      key = first + 1
      if not hit then
        hit = found[key - 2] or seen[KEYS[key]]
        is_alias = hit and true
        if found[key - 2] and not touched then
          touched, touched_window = KEYS[key], client_id_window
        end
      end
    end
    if not hit then
      parts[#parts + 1] = ARGV[at]
      local count = #names + 1
      seen[KEYS[first]] = i
      names[count], sources[count], spans[count] = KEYS[first], i, window
      if key > first then
        seen[KEYS[key]] = i
        names[count + 1], sources[count + 1], spans[count + 1] = KEYS[key], i, client_id_window
      end
      reply[i + 2] = 0
    else
      reply[i + 2] = hit
      if is_alias then
        -- The client's id is known under another key: with the same body, this key means that order too.
        local theirs = type(hit) == 'number' and ARGV[9 + (hit - 1) * 3 + 1] or hit
        if string.sub(theirs, 17, 32) == string.sub(ARGV[at + 1], 17, 32) then
          local count = #names + 1
          seen[KEYS[first]] = hit
          names[count], sources[count], spans[count] = KEYS[first], hit, key_window
        end
      end
    end
    at = at + 3
  end
end

local fresh = unkeyed + #parts
local entry = ''
if fresh > 0 then
  local data = ARGV[8]
  if keyed > 0 then
    -- The msgpack array32 header, then the records as they came.
    data = string.char(221, math.floor(fresh / 16777216) % 256, math.floor(fresh / 65536) % 256,
      math.floor(fresh / 256) % 256, fresh % 256) .. data .. table.concat(parts)
  end
  counter = counter + fresh
  local c = string.format('%.0f', counter)
  if trace == '' then
    entry = redis.call('XADD', stream, '*', 'v', ARGV[1], 'b', batch, 'c', c, 'n', fresh, 'd', data)
  else
    entry = redis.call('XADD', stream, '*', 'v', ARGV[1], 'b', batch, 'c', c, 'n', fresh, 'd', data,
      't', trace)
  end
  redis.call('SET', count_key, c)
elseif touched then
  -- Only duplicates: write all the same, because WAIT counts only what this connection wrote.
  -- PEXPIRE and not INCRBY 0: it is allowed when memory is full, so a retry still gets its answer.
  redis.call('PEXPIRE', touched, touched_window)
end

local suffix = batch .. entry
for i = 1, #names do
  local value = sources[i]
  if type(value) == 'number' then
    value = ARGV[10 + (value - 1) * 3] .. suffix
  end
  redis.call('SET', names[i], value, 'PX', spans[i])
end
reply[1] = entry
reply[2] = string.format('%.0f', counter)
return reply
