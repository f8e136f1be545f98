"""Agreement on circuits in PostgreSQL: one row for each circuit, one function call for each ballot.

```
{"era": 1, "open": until, "forced": until, "leased": until, "owner": member,
 "alive": {member: until, ...}, "votes": {member: until, ...}}
```

The row is locked while it is counted. `reliakit.stores.redis_ballots` does the same steps in Lua and explains them.
All instants are the server's, in microseconds; `forced` is -1 for no end.
"""

from __future__ import annotations

from math import inf

from reliakit.stores.ballots import Ballot, Count

__all__ = ["BALLOTS", "count_of", "force_words", "vote_words"]

BALLOTS = """
CREATE UNLOGGED TABLE IF NOT EXISTS {circuits} (circuit bytea PRIMARY KEY, state jsonb NOT NULL);

CREATE OR REPLACE FUNCTION {vote}(named bytea, who text, lifetime bigint, remaining bigint, known bigint,
  wants boolean, lease bigint, closed boolean, quorum bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  s jsonb; at bigint; era bigint; alive jsonb; votes jsonb; members bigint; count bigint; longest bigint;
  open bigint; forced bigint; leased bigint; owner text;
BEGIN
  INSERT INTO {circuits} VALUES (named, '{{}}') ON CONFLICT DO NOTHING;
  SELECT state INTO s FROM {circuits} WHERE circuit = named FOR UPDATE;
  at := extract(epoch FROM clock_timestamp()) * 1000000;
  era := coalesce((s->>'era')::bigint, 0);
  IF closed AND known = era THEN
    era := era + 1; known := era; s := s - 'votes' - 'open' - 'leased' - 'owner';
  END IF;

  SELECT coalesce(jsonb_object_agg(key, value), '{{}}') INTO alive FROM jsonb_each(coalesce(s->'alive', '{{}}'))
    WHERE value::bigint > at AND key <> who;
  alive := alive || jsonb_build_object(who, at + lifetime);
  SELECT coalesce(jsonb_object_agg(key, value), '{{}}') INTO votes FROM jsonb_each(coalesce(s->'votes', '{{}}'))
    WHERE value::bigint > at AND key <> who AND alive ? key;
  IF remaining > 0 AND known IN (era, -1) THEN votes := votes || jsonb_build_object(who, at + remaining);
  ELSE remaining := 0;
  END IF;
  SELECT count(*) INTO members FROM jsonb_object_keys(alive);
  SELECT count(*), coalesce(max(value::bigint), 0) INTO count, longest FROM jsonb_each(votes);
  leased := coalesce((s->>'leased')::bigint, 0); owner := s->>'owner';
  IF leased <= at THEN owner := NULL; END IF;

  IF quorum = 0 THEN quorum := greatest(2, ceil(members * 0.3)); END IF;
  open := coalesce((s->>'open')::bigint, 0);
  IF count >= quorum THEN open := greatest(open, longest);
  ELSIF remaining > 0 AND owner = who THEN open := at + remaining;
  END IF;
  IF wants AND coalesce(owner, who) = who THEN owner := who; leased := at + lease;
  ELSIF owner = who THEN owner := NULL;
  END IF;
  forced := coalesce((s->>'forced')::bigint, 0);
  IF forced >= 0 THEN forced := greatest(0, forced - at); END IF;

  s := jsonb_build_object('era', era, 'alive', alive, 'votes', votes, 'open', open, 'leased', leased, 'owner', owner,
    'forced', CASE WHEN forced > 0 THEN at + forced ELSE forced END);
  UPDATE {circuits} SET state = s WHERE circuit = named;
  RETURN ARRAY[era, members, count, quorum, greatest(0, open - at), (owner IS NOT NULL AND owner = who)::int,
    (owner IS NOT NULL)::int, forced];
END $$;

CREATE OR REPLACE FUNCTION {force}(named bytea, seconds bigint) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  until bigint := seconds;
BEGIN
  IF seconds > 0 THEN until := extract(epoch FROM clock_timestamp()) * 1000000 + seconds; END IF;
  INSERT INTO {circuits} AS kept VALUES (named, jsonb_build_object('forced', until))
    ON CONFLICT (circuit) DO UPDATE SET state = kept.state || EXCLUDED.state;
  RETURN ARRAY[until];
END $$;
"""


def vote_words(ballot: Ballot) -> tuple[bytes, ...]:
    """Return a ballot's parameters after the circuit."""
    return (
        ballot.member.encode(),
        _micros(ballot.lifetime),
        _micros(ballot.remaining),
        b"%d" % ballot.era,
        b"%d" % ballot.wants_lease,
        _micros(ballot.lease),
        b"%d" % ballot.has_closed,
        b"%d" % ballot.quorum,
    )


def force_words(seconds: float) -> tuple[bytes, ...]:
    """Return the parameters that force a circuit open, after the circuit."""
    return (b"-1" if seconds == inf else _micros(seconds),)


def count_of(reply: list[int]) -> Count:
    """Return what the function answered."""
    era, members, votes, quorum, remaining, has_lease, is_leased, forced = reply
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
