"""What Redis runs: one script for each decision, whatever the number of limits.

Each script reads the state, decides in whole numbers and writes the new state with the time after which nothing of it
counts; it returns the clock and the state before. See `reliakit.stores.shared` for the rows of numbers, and
`reliakit.stores.algorithms` for the same decisions with their explanations. Rows are kept as integers of eight bytes:
writing and reading them as text was half of what a script cost the server. Rules come as doubles, which it reads
faster.
"""

from __future__ import annotations

import hashlib

__all__ = ["CLOCK", "DECIDE", "DECIDE_ONE", "Script"]


class Script:
    """A Lua script.

    Attributes:
        text: The script.
        digest: Its SHA-1 in hexadecimal, by which a server knows it.
    """

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text: str = text
        # Redis names scripts by this hash; nothing secret depends on it.
        self.digest: str = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# ARGV[2]: now, or "" for the server's clock. Times are microseconds since the epoch, whole in a double until the year
# 2255. By clients' clocks a state is kept a minute longer, for clients whose clocks are behind.
CLOCK = """
local now, slack = tonumber(ARGV[2]), 60000
if not now then
  slack = 2
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
"""

# A value of one gcra rule: whole and rest of the theoretical arrival time. ARGV: op, now, what this cost comes to:
# spent (whole, rest), scale, how far in advance (whole, rest).
DECIDE_ONE = Script(
    CLOCK
    + """
local key, op = KEYS[1], ARGV[1]
local before = redis.call('GET', key)
local reply, whole, part = {now}, 0, 0
if before then
  whole, part = struct.unpack('<i8i8', before)
  reply = {now, whole, part}
end
if op == 'peek' then return reply end
local spending, over, scale, tolerance, tolerated = struct.unpack('<ddddd', ARGV[3])
if op == 'hit' then
  if whole < now then whole, part = now, 0 end
  whole, part = whole + spending, part + over
  if part >= scale then whole, part = whole + 1, part - scale end
  local due = whole - tolerance
  if part > tolerated then due = due + 1 end
  if due <= now then
    redis.call('PSETEX', key, string.format('%.0f', (whole - now) / 1000 + slack), struct.pack('<i8i8', whole, part))
  end
elseif op == 'refund' then
  whole, part = whole - spending, part - over
  if part < 0 then whole, part = whole - 1, part + scale end
  if whole > now or (whole == now and part > 0) then
    redis.call('PSETEX', key, string.format('%.0f', (whole - now) / 1000 + slack), struct.pack('<i8i8', whole, part))
  elseif before then
    redis.call('DEL', key)
  end
else
  redis.call('DEL', key)
end
return reply
"""
)

_COUNTERS = """
local function plus(whole, part, rule, cost)
  local over = part + cost * rule.rest
  local carry = math.floor(over / rule.scale)
  return whole + cost * rule.step + carry, over - carry * rule.scale
end

local function begun(rule, at) return at - at % rule.period end

local function live(rule, state, at)
  local kept = {}
  for _, instant in ipairs(state) do
    if #kept > 0 or instant > at - rule.period then kept[#kept + 1] = instant end
  end
  return kept
end

local function rolled(rule, state, at)
  local start, before, here = state[1], state[2], state[3]
  while (before > 0 or here > 0) and at >= start + rule.period do
    start, before, here = start + rule.period, here, 0
  end
  if before == 0 and here == 0 then start = begun(rule, at) end
  return start, before, here
end

local function window(rule, state, at)
  if state[2] == 0 or at >= state[1] + rule.period then return begun(rule, at), 0 end
  return state[1], state[2]
end

local gcra, log, counter, fixed = {}, {}, {}, {}

function gcra.spend(rule, state, at, cost)
  local whole, part = state[1], state[2]
  if whole < at then whole, part = at, 0 end
  return {plus(whole, part, rule, cost)}
end
function gcra.due(rule, state, at, cost)
  local after = gcra.spend(rule, state, at, cost)
  local due = after[1] - rule.tolerance
  if after[2] > rule.tolerated then due = due + 1 end
  return math.max(at, due)
end
function gcra.refund(rule, state, at, cost)
  local whole, part = plus(state[1], state[2], rule, -cost)
  if whole > at or (whole == at and part > 0) then return {whole, part} end
  return {0, 0}
end
function gcra.full(rule, state) return state[1] + (state[2] > 0 and 1 or 0) end

function log.spend(rule, state, at, cost)
  local after = live(rule, state, at)
  at = math.max(at, after[#after] or at)
  for _ = 1, cost do after[#after + 1] = at end
  return after
end
function log.due(rule, state, at, cost)
  local spent = live(rule, state, at)
  local over = #spent + cost - rule.limit
  if over <= 0 then return at end
  return spent[over] + rule.period
end
function log.refund(rule, state, at, cost)
  local after = live(rule, state, at)
  for i = #after, math.max(1, #after - cost + 1), -1 do after[i] = nil end
  return after
end
function log.full(rule, state) return #state > 0 and state[#state] + rule.period or 0 end

function counter.spend(rule, state, at, cost)
  local start, before, here = rolled(rule, state, at)
  return {start, before, here + cost}
end
function counter.due(rule, state, at, cost)
  local start, before, here = rolled(rule, state, at)
  if here + cost > rule.limit then
    start, before, here = start + rule.period, here, 0
    at = start
  end
  local room = (rule.limit - here - cost) * rule.period
  if before * (start + rule.period - at) > room then
    return start + rule.period - math.floor(room / before)
  end
  return at
end
function counter.refund(rule, state, at, cost)
  local start, before, here = rolled(rule, state, at)
  before, here = math.max(0, before + math.min(0, here - cost)), math.max(0, here - cost)
  if before == 0 and here == 0 then return {0, 0, 0} end
  return {start, before, here}
end
function counter.full(rule, state)
  if state[2] == 0 and state[3] == 0 then return 0 end
  return state[1] + rule.period * (state[3] > 0 and 2 or 1)
end

function fixed.spend(rule, state, at, cost)
  local start, spent = window(rule, state, at)
  return {start, spent + cost}
end
function fixed.due(rule, state, at, cost)
  local start, spent = window(rule, state, at)
  return spent + cost <= rule.limit and at or start + rule.period
end
function fixed.refund(rule, state, at, cost)
  local start, spent = window(rule, state, at)
  if spent <= cost then return {0, 0} end
  return {start, spent - cost}
end
function fixed.full(rule, state) return state[2] > 0 and state[1] + rule.period or 0 end
"""

# ARGV: op, now, cost, patience, and the rules, eight numbers each. The commonest case first: nothing is reserved, no
# rule is a log, and nobody waits. A third of the time of what follows it.
_AT_ONCE = """
local key, op, cost, patience, given = KEYS[1], ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local before = redis.call('GET', key) or ''
local function at_once()
  local reply, after, at, full = {now}, {}, 1, 0
  for i = 1, #given, 64 do
    local kind, limit, period, scale, step, rest, tolerance, tolerated =
      struct.unpack('<dddddddd', given, i)
    if kind == 1 then return nil end
    local first, second, third = 0, 0, 0
    if before ~= '' then
      local told = #reply
      if kind == 2 then
        first, second, third, at = struct.unpack('<i8i8i8', before, at)
        reply[told + 3] = third
      else
        first, second, at = struct.unpack('<i8i8', before, at)
      end
      reply[told + 1], reply[told + 2] = first, second
    end
    if kind == 0 then
      if first < now then first, second = now, 0 end
      first, second = first + cost * step, second + cost * rest
      if second >= scale then
        local carry = math.floor(second / scale)
        first, second = first + carry, second - carry * scale
      end
      local due = first - tolerance
      if second > tolerated then due = due + 1 end
      if due > now then return nil end
      if first >= full then full = first + 1 end
    elseif kind == 3 then
      if second == 0 or now >= first + period then first, second = now - now % period, 0 end
      second = second + cost
      if second > limit then return nil end
      if first + period > full then full = first + period end
    else
      while (second > 0 or third > 0) and now >= first + period do
        first, second, third = first + period, third, 0
      end
      if second == 0 and third == 0 then first = now - now % period end
      third = third + cost
      if third > limit or second * (first + period - now) > (limit - third) * period then return nil end
      if first + 2 * period > full then full = first + 2 * period end
    end
    if kind == 2 then
      after[#after + 1] = struct.pack('<i8i8i8', first, second, third)
    else
      after[#after + 1] = struct.pack('<i8i8', first, second)
    end
  end
  if at <= #before then return nil end
  redis.call('PSETEX', key, string.format('%.0f', (full - now) / 1000 + slack), table.concat(after))
  return reply
end
if op == 'hit' then
  local reply = at_once()
  if reply then return reply end
end
local row = {now}
for i = 1, #before, 8 do row[#row + 1] = struct.unpack('<i8', before, i) end
if op == 'peek' then return row end
if op == 'reset' then
  redis.call('DEL', key)
  return row
end
"""

DECIDE = Script(
    CLOCK
    + _AT_ONCE
    + _COUNTERS
    + """
local kinds, widths = {[0] = gcra, log, counter, fixed}, {[0] = 2, 0, 3, 2}
local at = 1
local function take(width)
  local taken = {}
  for i = 1, width do taken[i] = row[at + i] or 0 end
  at = at + width
  return taken
end
local rules, states = {}, {}
for i = 1, #given, 64 do
  local kind, limit, period, scale, step, rest, tolerance, tolerated = struct.unpack('<dddddddd', given, i)
  rules[#rules + 1] = {
    counts = kinds[kind], is_log = kind == 1, limit = limit, period = period, scale = scale, step = step,
    rest = rest, tolerance = tolerance, tolerated = tolerated
  }
  local width = widths[kind]
  -- What somebody else has written here may say anything; no more is read than there is.
  if kind == 1 then width = math.min(take(1)[1], #row - at) end
  states[#states + 1] = take(width)
end

local function all_spend(states, instant, amount)
  local after = {}
  for i, rule in ipairs(rules) do after[i] = rule.counts.spend(rule, states[i], instant, amount) end
  return after
end
local reserved = {}
while at < #row do
  local instant, amount = row[at + 1], row[at + 2]
  at = at + 2
  if instant <= now then
    states = all_spend(states, instant, amount)
  else
    reserved[#reserved + 1] = {instant, amount}
  end
end
local function after_all()
  local last, from = states, now
  for _, slot in ipairs(reserved) do last, from = all_spend(last, slot[1], slot[2]), slot[1] end
  return last, from
end

if op == 'refund' then
  while cost > 0 and #reserved > 0 do
    local slot = reserved[#reserved]
    local given = math.min(cost, slot[2])
    slot[2], cost = slot[2] - given, cost - given
    if slot[2] == 0 then reserved[#reserved] = nil end
  end
  if cost > 0 then
    for i, rule in ipairs(rules) do states[i] = rule.counts.refund(rule, states[i], now, cost) end
  end
else
  local last, from = after_all()
  local due = from
  for i, rule in ipairs(rules) do due = math.max(due, rule.counts.due(rule, last[i], from, cost)) end
  if due - now > patience then return row end
  if due > now then
    reserved[#reserved + 1] = {due, cost}
  else
    states = all_spend(states, now, cost)
  end
end

local last, full = after_all(), 0
for i, rule in ipairs(rules) do full = math.max(full, rule.counts.full(rule, last[i])) end
if full <= now then
  redis.call('DEL', key)
  return row
end
local written = {}
local function write(number) written[#written + 1] = struct.pack('<i8', number) end
for i, rule in ipairs(rules) do
  if rule.is_log then write(#states[i]) end
  for _, number in ipairs(states[i]) do write(number) end
end
for _, slot in ipairs(reserved) do
  write(slot[1])
  write(slot[2])
end
redis.call('PSETEX', key, string.format('%.0f', (full - now) / 1000 + slack), table.concat(written))
return row
"""
)
