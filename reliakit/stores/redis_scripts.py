"""What Redis runs: one script for each decision, whatever the number of limits.

Each reads the state, decides by whole numbers and writes the state after it with the time after which it is as good
as new; it returns the clock and the state before. See `reliakit.stores.shared` for the rows of numbers, and
`reliakit.stores.algorithms` for the same decisions with their explanations.
"""

from __future__ import annotations

import hashlib

__all__ = ["ATTEMPT", "DECIDE", "DECIDE_ONE", "Script"]


class Script:
    """A Lua script.

    Attributes:
        text: The script.
        digest: Its SHA-1 in hexadecimal, by which a server knows it.
    """

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text: str = text
        # Redis names scripts by it; nothing is kept secret or safe by this hash.
        self.digest: str = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# ARGV: op, now or "" for the server's clock, cost, patience, rules. Times are microseconds since the epoch, whole in
# a double until the year 2255, and written with %.0f, as Lua would round them to 14 digits. By clients' clocks a
# state is kept a minute longer, for clients whose clocks are behind.
_CLOCK = """
local now, slack = tonumber(ARGV[2]), 60000
if not now then
  slack = 2
  local t = redis.call('TIME')
  now = t[1] * 1000000 + t[2]
end
"""

# A value of one gcra rule: whole and rest of the theoretical arrival time.
DECIDE_ONE = Script(
    _CLOCK
    + """
local key, op = KEYS[1], ARGV[1]
local before = redis.call('GET', key)
if op == 'peek' then return {now, before or ''} end
local scale, step, rest = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local cost = tonumber(ARGV[3])
local spending, over = cost * step, cost * rest
if over >= scale then
  local carry = math.floor(over / scale)
  spending, over = spending + carry, over - carry * scale
end
local whole, part = 0, 0
if before then
  local gap = string.find(before, ' ', 1, true)
  whole, part = tonumber(string.sub(before, 1, gap - 1)), tonumber(string.sub(before, gap + 1))
end
if op == 'hit' then
  if whole < now then whole, part = now, 0 end
  whole, part = whole + spending, part + over
  if part >= scale then whole, part = whole + 1, part - scale end
  local due = whole - tonumber(ARGV[11])
  if part > tonumber(ARGV[12]) then due = due + 1 end
  if due - now <= tonumber(ARGV[4]) then
    redis.call('SET', key, string.format('%.0f %.0f', whole, part), 'PX', math.floor((whole - now) / 1000) + slack)
  end
elseif op == 'refund' then
  whole, part = whole - spending, part - over
  if part < 0 then whole, part = whole - 1, part + scale end
  if whole > now or (whole == now and part > 0) then
    redis.call('SET', key, string.format('%.0f %.0f', whole, part), 'PX', math.floor((whole - now) / 1000) + slack)
  elseif before then
    redis.call('DEL', key)
  end
else
  redis.call('DEL', key)
end
return {now, before or ''}
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

# The commonest case: nothing is reserved, no rule is a log, and nobody waits. Half the time of what follows it.
_AT_ONCE = """
local key, op, cost, patience = KEYS[1], ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local before = redis.call('GET', key)
if op == 'peek' then return {now, before or ''} end
if op == 'reset' then
  redis.call('DEL', key)
  return {now, before or ''}
end
local row, size = {}, 0
if before then
  for number in string.gmatch(before, '%S+') do
    size = size + 1
    row[size] = tonumber(number)
  end
end
local function at_once()
  local after, at, full = {}, 0, 0
  for i = 5, #ARGV, 8 do
    local kind, limit, period = tonumber(ARGV[i]), tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
    local first, second, third = row[at + 1] or 0, row[at + 2] or 0, row[at + 3] or 0
    if kind == 0 then
      local scale, over = tonumber(ARGV[i + 3]), cost * tonumber(ARGV[i + 5])
      if first < now then first, second = now, 0 end
      first, second = first + cost * tonumber(ARGV[i + 4]), second + over
      if second >= scale then
        local carry = math.floor(second / scale)
        first, second = first + carry, second - carry * scale
      end
      local due = first - tonumber(ARGV[i + 6])
      if second > tonumber(ARGV[i + 7]) then due = due + 1 end
      if due > now then return nil end
      full = math.max(full, first + 1)
    elseif kind == 3 then
      if second == 0 or now >= first + period then first, second = now - now % period, 0 end
      second = second + cost
      if second > limit then return nil end
      full = math.max(full, first + period)
    elseif kind == 2 then
      while (second > 0 or third > 0) and now >= first + period do
        first, second, third = first + period, third, 0
      end
      if second == 0 and third == 0 then first = now - now % period end
      third = third + cost
      if third > limit or second * (first + period - now) > (limit - third) * period then return nil end
      full = math.max(full, first + 2 * period)
    else
      return nil
    end
    after[#after + 1] = string.format(kind == 2 and '%.0f %.0f %.0f' or '%.0f %.0f', first, second, third)
    at = at + (kind == 2 and 3 or 2)
  end
  if size > at then return nil end
  return table.concat(after, ' '), full
end
if op == 'hit' then
  local after, full = at_once()
  if after then
    redis.call('SET', key, after, 'PX', math.floor((full - now) / 1000) + slack)
    return {now, before or ''}
  end
end
"""

DECIDE = Script(
    _CLOCK
    + _AT_ONCE
    + _COUNTERS
    + """
local kinds, widths = {[0] = gcra, log, counter, fixed}, {[0] = 2, 0, 3, 2}
local at = 0
local function take(width)
  local taken = {}
  for i = 1, width do taken[i] = row[at + i] or 0 end
  at = at + width
  return taken
end
local rules, states = {}, {}
for i = 5, #ARGV, 8 do
  local kind = tonumber(ARGV[i])
  rules[#rules + 1] = {
    counts = kinds[kind], is_log = kind == 1, limit = tonumber(ARGV[i + 1]), period = tonumber(ARGV[i + 2]),
    scale = tonumber(ARGV[i + 3]), step = tonumber(ARGV[i + 4]), rest = tonumber(ARGV[i + 5]),
    tolerance = tonumber(ARGV[i + 6]), tolerated = tonumber(ARGV[i + 7])
  }
  local width = widths[kind]
  if kind == 1 then width = take(1)[1] end
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
  if due - now > patience then return {now, before or ''} end
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
  return {now, before or ''}
end
local written = {}
local function write(number) written[#written + 1] = string.format('%.0f', number) end
for i, rule in ipairs(rules) do
  if rule.is_log then write(#states[i]) end
  for _, number in ipairs(states[i]) do write(number) end
end
for _, slot in ipairs(reserved) do
  write(slot[1])
  write(slot[2])
end
redis.call('SET', key, table.concat(written, ' '), 'PX', math.floor((full - now) / 1000) + slack)
return {now, before or ''}
"""
)

# KEYS: account, pair, source, device. ARGV: op, now or "", which of the four are meant ("1101"), claim, the rules.
ATTEMPT = Script(
    _CLOCK
    + """
local op, meant, claim = ARGV[1], ARGV[3], tonumber(ARGV[4])
local n = {}
for i = 5, #ARGV do n[i - 4] = tonumber(ARGV[i]) end
local free, base, cap, stop, keep, pair_keep, device_keep = unpack(n)
local scale, step, rest, tolerance, tolerated = n[11], n[12], n[13], n[14], n[15]
local before, states = {}, {}
for i = 1, 4 do
  local value = string.sub(meant, i, i) == '1' and redis.call('GET', KEYS[i]) or ''
  before[i] = value
  local state = {}
  for number in string.gmatch(value, '%S+') do state[#state + 1] = tonumber(number) end
  if i == 3 then
    if state[1] and state[1] >= now then states[i] = state end
  elseif state[4] and state[4] > now then
    states[i] = state
  end
end
local account, pair, source, device = states[1], states[2], states[3], states[4]
local generation = account and account[3] or 0
local reply = {now, before[1], before[2], before[3], before[4]}

local function delay(failures)
  if failures < free then return 0 end
  return math.min(cap, base * 2 ^ math.min(failures - free, 62))
end
local function live(state)
  if state and state[3] == generation then return state end
  return {0, 0, 0, 0}
end
local function wait(state)
  if state[1] >= stop then return math.huge end
  return math.max(0, state[2] - now)
end
local function one_more(state, kept)
  local number = state[1] + 1
  local till = now + delay(number)
  return {number, till, generation, till + kept}
end
local function one_less(state)
  if not state or state[1] == 0 then return state end
  return {state[1] - 1, math.min(state[2], now + delay(state[1] - 1)), state[3], state[4]}
end
local function spent(state)
  local whole, part = now, 0
  if state then whole, part = state[1], state[2] end
  whole, part = whole + step, part + rest
  if part >= scale then whole, part = whole + 1, part - scale end
  return {whole, part}
end
local function refunded(state)
  if claim ~= 2 or not state then return state end
  local whole, part = state[1] - step, state[2] - rest
  if part < 0 then whole, part = whole - 1, part + scale end
  if whole > now or (whole == now and part > 0) then return {whole, part} end
  return nil
end

if op == 'look' then return reply end
if op == 'reserve' then
  if device then
    if wait(live(device)) > 0 then return reply end
    local expires = device[4]
    device = one_more(live(device), 0)
    device[4] = expires
  else
    if wait(live(account)) > 0 or wait(live(pair)) > 0 then return reply end
    local after = spent(source)
    local due = after[1] - tolerance + (after[2] > tolerated and 1 or 0)
    if due > now then return reply end
    if live(pair)[1] == 0 then source = after end
    account, pair = one_more(live(account), keep), one_more(live(pair), pair_keep)
  end
elseif op == 'succeed' then
  if claim ~= 3 then
    if account and generation ~= 0 then account = {0, 0, generation, account[4]} else account = nil end
    pair, source = nil, refunded(source)
  end
  device = {0, 0, generation, now + device_keep}
elseif op == 'cancel' then
  if claim == 3 then
    device = one_less(device)
  elseif claim ~= 0 then
    account, pair, source = one_less(account), one_less(pair), refunded(source)
  end
else
  if string.sub(meant, 1, 1) == '1' then
    account = {0, 0, math.max(now, generation + 1), now + math.max(keep, pair_keep, device_keep)}
  end
  source = nil
end

for i, state in pairs({account or false, pair or false, source or false, device or false}) do
  if string.sub(meant, i, i) == '1' then
    if state then
      local text = {}
      for j, number in ipairs(state) do text[j] = string.format('%.0f', number) end
      local left = (state[4] or state[1]) - now
      redis.call('SET', KEYS[i], table.concat(text, ' '), 'PX', math.floor(left / 1000) + slack)
    elseif before[i] ~= '' then
      redis.call('DEL', KEYS[i])
    end
  end
end
return reply
"""
)
