"""What a Redis server does by itself, all at once: the rules of ``limits`` and ``breakers`` in Lua, in milliseconds.

The server's clock counts for all. The first argument of each script is 0, or a time for tests. Every key has an end.
"""

from collections.abc import Mapping
from typing import Final

_NOW: Final = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

_ENTER: Final = (
    _NOW
    + """
-- KEYS: who is in (until when), requests by second, tokens by second, what the server of the model said
-- ARGV: now, id, places (0: any number), requests and tokens a minute (0: any number), lease,
--       requests and tokens needed; gives 1 and the second, or 0 and how long to wait (-1: until somebody leaves)
local function window(key, limit, need)
  local cutoff, used, cells = math.floor(now / 1000) - 60, 0, {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local cell, amount = tonumber(all[i]), tonumber(all[i + 1])
    if cell < cutoff then
      redis.call('HDEL', key, all[i])
    else
      used = used + amount
      cells[#cells + 1] = {cell, amount}
    end
  end
  table.sort(cells, function(a, b) return a[1] < b[1] end)
  local wait = 0
  for _, cell in ipairs(cells) do
    if used + need <= limit then break end
    used = used - cell[2]
    wait = (cell[1] + 61) * 1000 - now
  end
  return wait
end

local function pause(what, key, limit, need)
  local said = redis.call('HMGET', KEYS[4], what .. ':until', what .. ':left', what .. ':limit')
  local wait, till, left = 0, tonumber(said[1] or 0), tonumber(said[2] or 0)
  if now < till and (left <= 0 or need > left) then wait = till - now end
  if limit == 0 or need == 0 then return wait end
  if said[3] then limit = math.min(limit, math.max(tonumber(said[3]), need)) end
  return math.max(wait, window(key, limit, need))
end

local function take(what, key, limit, need)
  if limit > 0 and need > 0 then
    redis.call('HINCRBY', key, math.floor(now / 1000), need)
    redis.call('PEXPIRE', key, 62000)
  end
  if tonumber(redis.call('HGET', KEYS[4], what .. ':until') or 0) > now then
    redis.call('HINCRBY', KEYS[4], what .. ':left', -need)
  end
end

local places, rpm, tpm, lease = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local requests, tokens = tonumber(ARGV[7]), tonumber(ARGV[8])
local wait = math.max(pause('requests', KEYS[2], rpm, requests), pause('tokens', KEYS[3], tpm, tokens))
if wait > 0 then return {0, wait} end
if places > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  if redis.call('ZCARD', KEYS[1]) >= places then return {0, -1} end
  redis.call('ZADD', KEYS[1], now + lease, ARGV[2])
  if redis.call('PTTL', KEYS[1]) < lease then redis.call('PEXPIRE', KEYS[1], lease) end
end
take('requests', KEYS[2], rpm, requests)
take('tokens', KEYS[3], tpm, tokens)
return {1, math.floor(now / 1000)}
"""
)

_LEAVE: Final = (
    _NOW
    + """
-- KEYS: as above; ARGV: now, id, second of the ticket, requests and tokens to put right by,
--       age of what the server of the model said (-1: nothing),
--       then of requests and of tokens: limit, left, for how long (-1: unsaid)
redis.call('ZREM', KEYS[1], ARGV[2])
local function put_right(key, by)
  if by == 0 or redis.call('HEXISTS', key, ARGV[3]) == 0 then return end
  if redis.call('HINCRBY', key, ARGV[3], by) < 0 then redis.call('HSET', key, ARGV[3], 0) end
end
put_right(KEYS[2], tonumber(ARGV[4]))
put_right(KEYS[3], tonumber(ARGV[5]))

local function heed(what, at, limit, left, reset)
  if (limit < 0 and left < 0) or at < tonumber(redis.call('HGET', KEYS[4], what .. ':heard') or 0) then return end
  redis.call('HSET', KEYS[4], what .. ':heard', at)
  if limit > 0 then redis.call('HSET', KEYS[4], what .. ':limit', limit) end
  if left >= 0 and reset >= 0 then
    redis.call('HSET', KEYS[4], what .. ':left', left, what .. ':until', at + reset)
    if redis.call('PTTL', KEYS[4]) < reset then redis.call('PEXPIRE', KEYS[4], reset) end
  end
  if redis.call('PTTL', KEYS[4]) < 3600000 then redis.call('PEXPIRE', KEYS[4], 3600000) end
end
local age = tonumber(ARGV[6])
if age >= 0 then
  heed('requests', now - age, tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]))
  heed('tokens', now - age, tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]))
end
return {1}
"""
)

_ADMIT: Final = (
    _NOW
    + """
-- KEYS: the breaker; ARGV: now, lease, 1 for "let me through anyway", when to ask again while a probe is under way
local known = redis.call('HMGET', KEYS[1], 'open', 'probing', 'epoch')
local epoch = tonumber(known[3] or 0)
if not known[1] then return {'counted', epoch, 0} end
local wait = tonumber(known[1]) - now
if wait <= 0 and tonumber(known[2] or 0) <= now then
  redis.call('HSET', KEYS[1], 'probing', now + tonumber(ARGV[2]))
  return {'probe', epoch, 0}
end
return {ARGV[3] == '1' and 'anyway' or 'refused', epoch, wait > 0 and wait or tonumber(ARGV[4])}
"""
)

_RECORD: Final = (
    _NOW
    + """
-- KEYS: the breaker, tries by cell, faults by cell
-- ARGV: now, kind, epoch, what became of it (1 failed, 0 worked, -1 says nothing), milliseconds of a cell,
--       cells, least tries, rate, how long to stay open; gives how long it is open, or 0
local epoch, failed = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0), tonumber(ARGV[4])
if tonumber(ARGV[3]) ~= epoch then return {0} end
if failed < 0 then
  if ARGV[2] == 'probe' then redis.call('HDEL', KEYS[1], 'probing') end
  return {0}
end

local function begin(open)
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'epoch', epoch + 1)
  if open > 0 then redis.call('HSET', KEYS[1], 'open', now + open) end
  redis.call('PEXPIRE', KEYS[1], 3600000 + open)
  return {open}
end
local open = tonumber(ARGV[9])
if ARGV[2] ~= 'counted' then
  if failed == 0 then return begin(0) end
  return ARGV[2] == 'probe' and begin(open) or {0}
end

local width, cells = tonumber(ARGV[5]), tonumber(ARGV[6])
local cell = math.floor(now / width)
local function count(key, by)
  local sum = by
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if tonumber(all[i]) < cell - cells then
      redis.call('HDEL', key, all[i])
    else
      sum = sum + tonumber(all[i + 1])
    end
  end
  if by > 0 then
    redis.call('HINCRBY', key, cell, by)
    redis.call('PEXPIRE', key, math.ceil(width * (cells + 1)))
  end
  return sum
end
local tries, faults = count(KEYS[2], 1), count(KEYS[3], failed)
if failed == 1 and tries >= tonumber(ARGV[7]) and faults >= tonumber(ARGV[8]) * tries then return begin(open) end
return {0}
"""
)

SCRIPTS: Final[Mapping[str, str]] = {"enter": _ENTER, "leave": _LEAVE, "admit": _ADMIT, "record": _RECORD}
"""The scripts by what they do."""
