"""Agreement on circuits in Redis: one hash for each circuit, one script for each ballot.

```
era        how often it was closed for everybody        m:<member>   alive until
open       open for everybody until                     v:<member>   its own circuit is open until
lease      <until> <member>                             forced       forced open until, or "inf"
```

All instants are the server's, in microseconds.
"""

from __future__ import annotations

from math import inf

from reliakit.stores.ballots import Ballot, Count
from reliakit.stores.redis_scripts import Script

__all__ = ["FORCE", "VOTE", "count_of", "force_words", "vote_words"]

_FORGOTTEN_AFTER = 86_400_000  # ms; nobody has voted for a day

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local key = KEYS[1]
"""

VOTE = Script(
    _NOW
    + """
local member, lifetime, remaining, known = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local wants, lease, closed, quorum = ARGV[5] == '1', tonumber(ARGV[6]), ARGV[7] == '1', tonumber(ARGV[8])
local era = tonumber(redis.call('HGET', key, 'era') or '0')
local fields = redis.call('HGETALL', key)
local function put(name, value) redis.call('HSET', key, name, string.format('%.0f', value)) end

if closed and known == era then
  era = era + 1
  known = era
  put('era', era)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, 2) == 'v:' then redis.call('HDEL', key, fields[i]) end
  end
  redis.call('HDEL', key, 'open', 'lease')
  fields = redis.call('HGETALL', key)
end

put('m:' .. member, now + lifetime)
local votes, members, longest, open, forced = 0, 1, 0, 0, '0'
local owner, leased, alive = '', 0, {}
for i = 1, #fields, 2 do
  local kind, who = string.sub(fields[i], 1, 2), string.sub(fields[i], 3)
  if kind == 'm:' and tonumber(fields[i + 1]) > now then alive[who] = true end
end
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  local kind, who = string.sub(name, 1, 2), string.sub(name, 3)
  if name == 'open' then open = tonumber(value)
  elseif name == 'forced' then forced = value
  elseif name == 'lease' then
    local gap = string.find(value, ' ', 1, true)
    leased, owner = tonumber(string.sub(value, 1, gap - 1)), string.sub(value, gap + 1)
  elseif (kind == 'm:' or kind == 'v:') and who ~= member then
    if tonumber(value) <= now or not alive[who] then redis.call('HDEL', key, name)
    elseif kind == 'm:' then members = members + 1
    else
      votes = votes + 1
      longest = math.max(longest, tonumber(value))
    end
  end
end
if remaining > 0 and (known == era or known == -1) then
  put('v:' .. member, now + remaining)
  votes = votes + 1
  longest = math.max(longest, now + remaining)
else
  redis.call('HDEL', key, 'v:' .. member)
  remaining = 0
end
if leased <= now then owner, leased = '', 0 end

if quorum == 0 then quorum = math.max(2, math.ceil(members * 0.3)) end
if votes >= quorum then
  open = math.max(open, longest)
  put('open', open)
elseif remaining > 0 and owner == member then
  open = now + remaining
  put('open', open)
end

if wants and (owner == '' or owner == member) then
  owner, leased = member, now + lease
  redis.call('HSET', key, 'lease', string.format('%.0f', leased) .. ' ' .. member)
elseif owner == member and not wants then
  owner, leased = '', 0
  redis.call('HDEL', key, 'lease')
end

local left = -1
if forced ~= 'inf' then
  left = math.max(0, tonumber(forced) - now)
  if left == 0 and forced ~= '0' then redis.call('HDEL', key, 'forced') end
end
if forced == 'inf' then redis.call('PERSIST', key) else redis.call('PEXPIRE', key, ARGV[9]) end
local mine, anybodys = owner == member and 1 or 0, owner ~= '' and 1 or 0
return {era, members, votes, quorum, math.max(0, open - now), mine, anybodys, left}
"""
)

FORCE = Script(
    _NOW
    + """
local seconds = ARGV[1]
if seconds == '0' then redis.call('HDEL', key, 'forced')
elseif seconds == 'inf' then
  redis.call('HSET', key, 'forced', 'inf')
  redis.call('PERSIST', key)
else
  redis.call('HSET', key, 'forced', string.format('%.0f', now + tonumber(seconds)))
  redis.call('PEXPIRE', key, math.max(tonumber(ARGV[2]), math.ceil(tonumber(seconds) / 1000)))
end
return {}
"""
)


def vote_words(ballot: Ballot) -> tuple[bytes, ...]:
    """Return the words of a ballot as the script reads them."""
    return (
        ballot.member.encode(),
        _micros(ballot.lifetime),
        _micros(ballot.remaining),
        b"%d" % ballot.era,
        b"%d" % ballot.wants_lease,
        _micros(ballot.lease),
        b"%d" % ballot.has_closed,
        b"%d" % ballot.quorum,
        b"%d" % _FORGOTTEN_AFTER,
    )


def force_words(seconds: float) -> tuple[bytes, ...]:
    """Return the words that force a circuit open as the script reads them."""
    return (b"inf" if seconds == inf else _micros(seconds), b"%d" % _FORGOTTEN_AFTER)


def count_of(reply: list[int]) -> Count:
    """Return what the script answered."""
    era, members, votes, quorum, remaining, has_lease, is_leased, forced = map(int, reply)
    return Count(
        era,
        members,
        votes,
        quorum,
        remaining / 1e6,
        bool(has_lease),
        bool(is_leased),
        inf if forced < 0 else forced / 1e6,
    )


def _micros(seconds: float) -> bytes:
    return b"%d" % round(seconds * 1e6)
