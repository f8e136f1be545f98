"""What Redis runs for an attempt to log in: account, pair, source and device decided together, in one script.

See `reliakit.stores.attempts` for the same decisions with their explanations, and `reliakit.stores.shared_attempts`
for the rows of numbers, which are kept as text.
"""

from __future__ import annotations

from reliakit.stores.redis_scripts import CLOCK, Script

__all__ = ["ATTEMPT"]

# KEYS: account, pair, source, device. ARGV: op, now or "", which of the four are meant ("1101"), claim, the rules.
ATTEMPT = Script(
    CLOCK
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
