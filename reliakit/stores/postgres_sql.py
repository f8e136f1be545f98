"""What PostgreSQL runs: one function for each decision, whatever the number of limits.

A function locks the row of the key, reads the clock, decides in whole numbers and writes the new row; it returns the
clock and the row before. See `reliakit.stores.shared` for the rows of numbers, and `reliakit.stores.algorithms` for
the same decisions with their explanations.

The table is UNLOGGED, so a crash of the server empties it: its content is useful for seconds only, and a decision
must not wait for a disk. `keep_until` is rounded up to ten minutes, so that most updates touch no index.
"""

from __future__ import annotations

from reliakit.stores.postgres_ballots import BALLOTS

__all__ = ["definitions", "functions"]

_FUNCTIONS = ("spend", "due", "give", "full", "purge", "hit", "decide", "wait", "count", "attempt", "vote", "force")
_TABLE = """
CREATE UNLOGGED TABLE IF NOT EXISTS {table} (
  place bytea PRIMARY KEY,
  numbers bigint[] NOT NULL,
  keep_until bigint NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX IF NOT EXISTS {index} ON {table} (keep_until);
"""

# rule: kind, limit, period, scale, increment (whole, rest), tolerance (whole, rest).
_COUNTERS = """
CREATE OR REPLACE FUNCTION {spend}(rule bigint[], state bigint[], at bigint, cost bigint) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  period bigint := rule[3]; whole bigint; part bigint; start bigint; before bigint; here bigint;
BEGIN
  CASE rule[1]
  WHEN 0 THEN
    whole := state[1]; part := state[2];
    IF whole < at THEN whole := at; part := 0; END IF;
    part := part + cost * rule[6];
    RETURN ARRAY[whole + cost * rule[5] + part / rule[4], part % rule[4]];
  WHEN 1 THEN
    WHILE cardinality(state) > 0 AND state[1] <= at - period LOOP state := state[2:]; END LOOP;
    RETURN state || array_fill(greatest(at, state[cardinality(state)]), ARRAY[cost::int]);
  WHEN 2 THEN
    start := state[1]; before := state[2]; here := state[3];
    WHILE (before > 0 OR here > 0) AND at >= start + period LOOP
      start := start + period; before := here; here := 0;
    END LOOP;
    IF before = 0 AND here = 0 THEN start := at - at % period; END IF;
    RETURN ARRAY[start, before, here + cost];
  ELSE
    IF state[2] = 0 OR at >= state[1] + period THEN RETURN ARRAY[at - at % period, cost]; END IF;
    RETURN ARRAY[state[1], state[2] + cost];
  END CASE;
END $$;

CREATE OR REPLACE FUNCTION {due}(rule bigint[], state bigint[], at bigint, cost bigint) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  period bigint := rule[3]; start bigint; before bigint; here bigint; room bigint; over bigint;
BEGIN
  state := {spend}(rule, state, at, cost);
  CASE rule[1]
  WHEN 0 THEN
    RETURN greatest(at, state[1] - rule[7] + CASE WHEN state[2] > rule[8] THEN 1 ELSE 0 END);
  WHEN 1 THEN
    over := cardinality(state) - rule[2];
    RETURN CASE WHEN over <= 0 THEN at ELSE state[over] + period END;
  WHEN 2 THEN
    start := state[1]; before := state[2]; here := state[3] - cost;
    IF here + cost > rule[2] THEN
      start := start + period; before := here; here := 0; at := start;
    END IF;
    room := (rule[2] - here - cost) * period;
    RETURN CASE WHEN before * (start + period - at) > room THEN start + period - room / before ELSE at END;
  ELSE
    RETURN CASE WHEN state[2] <= rule[2] THEN at ELSE state[1] + period END;
  END CASE;
END $$;

CREATE OR REPLACE FUNCTION {give}(rule bigint[], state bigint[], at bigint, cost bigint) RETURNS bigint[]
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  whole bigint; part bigint; before bigint; here bigint;
BEGIN
  CASE rule[1]
  WHEN 0 THEN
    whole := state[1] - cost * rule[5] - cost * rule[6] / rule[4];
    part := state[2] - cost * rule[6] % rule[4];
    IF part < 0 THEN whole := whole - 1; part := part + rule[4]; END IF;
    RETURN CASE WHEN whole > at OR whole = at AND part > 0 THEN ARRAY[whole, part] ELSE '{{0,0}}' END;
  WHEN 1 THEN
    state := {spend}(rule, state, at, 0);
    RETURN state[:greatest(0, cardinality(state) - cost)];
  WHEN 2 THEN
    state := {spend}(rule, state, at, 0);
    before := greatest(0, state[2] + least(0, state[3] - cost));
    here := greatest(0, state[3] - cost);
    RETURN CASE WHEN before = 0 AND here = 0 THEN '{{0,0,0}}' ELSE ARRAY[state[1], before, here] END;
  ELSE
    state := {spend}(rule, state, at, 0);
    RETURN CASE WHEN state[2] <= cost THEN '{{0,0}}' ELSE ARRAY[state[1], state[2] - cost] END;
  END CASE;
END $$;

CREATE OR REPLACE FUNCTION {full}(rule bigint[], state bigint[]) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE rule[1]
    WHEN 0 THEN state[1] + CASE WHEN state[2] > 0 THEN 1 ELSE 0 END
    WHEN 1 THEN coalesce(state[cardinality(state)] + rule[3], 0)
    WHEN 2 THEN CASE WHEN state[3] > 0 THEN state[1] + 2 * rule[3]
      WHEN state[2] > 0 THEN state[1] + rule[3] ELSE 0 END
    ELSE CASE WHEN state[2] > 0 THEN state[1] + rule[3] ELSE 0 END
  END
$$;
"""

# The commonest case, a hit under one gcra rule, in a single upsert: half the cost of the function below. The rule
# comes as the numbers for this cost: what is spent (whole, rest, in 1/scale), and how far in advance that may be.
_HIT_ONE = """
CREATE OR REPLACE FUNCTION {hit}(
  key bytea, told bigint, spending bigint, over bigint, scale bigint, tolerance bigint, tolerated bigint
) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  -- Before the row is locked, so it may lie a little before what others have just written, which only makes it
  -- stricter.
  now bigint := coalesce(told, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
  after bigint[]; known bigint[];
BEGIN
  LOOP
    INSERT INTO {table} AS t
      VALUES (key, ARRAY[now + spending, over], ((now + spending) / 600000000 + 2) * 600000000)
    ON CONFLICT (place) DO UPDATE SET
      numbers = CASE WHEN t.numbers[1] < now THEN excluded.numbers
        ELSE ARRAY[t.numbers[1] + spending + (t.numbers[2] + over) / scale, (t.numbers[2] + over) % scale] END,
      keep_until = ((greatest(now, t.numbers[1]) + spending) / 600000000 + 2) * 600000000
    WHERE t.numbers[1] < now OR t.numbers[1] + spending + (t.numbers[2] + over) / scale - now
      + CASE WHEN (t.numbers[2] + over) % scale > tolerated THEN 1 ELSE 0 END <= tolerance
    RETURNING numbers INTO after;
    IF FOUND THEN
      IF random() < 0.001 THEN PERFORM {purge}(now); END IF;
      RETURN ARRAY[now, after[1] - spending, after[2] - over];
    END IF;
    SELECT numbers INTO known FROM {table} WHERE place = key;
    IF FOUND THEN RETURN now || known; END IF;  -- else it was purged meanwhile
  END LOOP;
END $$;
"""

_PURGE = """
CREATE OR REPLACE FUNCTION {purge}(now bigint) RETURNS void LANGUAGE sql VOLATILE AS $$
  DELETE FROM {table} WHERE place IN (
    SELECT place FROM {table} WHERE keep_until < now ORDER BY keep_until LIMIT 1000 FOR UPDATE SKIP LOCKED
  )
$$;
"""

_DECIDE = """
CREATE OR REPLACE FUNCTION {decide}(
  key bytea, op text, told bigint, cost bigint, patience bigint, rules bigint[]
) RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  now bigint; known bigint[]; written bigint[] := '{{}}'; part bigint; due bigint; from_then bigint;
  rule bigint[]; state bigint[]; last bigint[]; reserved bigint[]; coming bigint[] := '{{}}';
  width int; at int; rest bigint; i int; j int; kept bigint := 0; spends boolean := false;
BEGIN
  LOOP
    SELECT numbers INTO known FROM {table} WHERE place = key FOR UPDATE;
    EXIT WHEN FOUND OR op <> 'hit';
    INSERT INTO {table} VALUES (key, '{{}}', 0) ON CONFLICT (place) DO NOTHING;
  END LOOP;
  -- Read once the row is locked, so that the clock of a key does not go back.
  now := coalesce(told, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
  known := coalesce(known, '{{}}');
  IF op = 'peek' THEN RETURN now || known; END IF;
  IF op = 'reset' THEN
    DELETE FROM {table} WHERE place = key;
    RETURN now || known;
  END IF;

  IF rules[1] = 0 AND cardinality(rules) = 8 THEN  -- one gcra rule, of which hits go elsewhere
    written := {give}(rules, CASE WHEN known = '{{}}' THEN '{{0,0}}' ELSE known END, now, cost);
    kept := written[1] + 1;
    IF written = '{{0,0}}' THEN kept := 0; END IF;
  ELSE
    -- The reservations stand behind the states of all rules.
    at := 0;
    FOR i IN 0 .. cardinality(rules) / 8 - 1 LOOP
      at := at + CASE rules[i * 8 + 1] WHEN 1 THEN 1 + coalesce(known[at + 1], 0) WHEN 2 THEN 3 ELSE 2 END;
    END LOOP;
    reserved := known[at + 1 :];
    j := 1;
    WHILE j < cardinality(reserved) AND reserved[j] <= now LOOP j := j + 2; END LOOP;
    coming := coalesce(reserved[j :], '{{}}');
    reserved := coalesce(reserved[: j - 1], '{{}}');
    from_then := now;
    IF cardinality(coming) > 0 THEN from_then := coming[cardinality(coming) - 1]; END IF;
    due := from_then;
    rest := cost;
    IF op = 'refund' THEN
      WHILE rest > 0 AND cardinality(coming) > 0 LOOP
        part := least(rest, coming[cardinality(coming)]);
        rest := rest - part;
        coming[cardinality(coming)] := coming[cardinality(coming)] - part;
        IF coming[cardinality(coming)] = 0 THEN coming := coming[: cardinality(coming) - 2]; END IF;
      END LOOP;
    END IF;
    FOR pass IN 1 .. 2 LOOP  -- first when it is due under all rules, then the states after it
      CONTINUE WHEN pass = 1 AND op = 'refund';
      at := 0;
      FOR i IN 0 .. cardinality(rules) / 8 - 1 LOOP
        rule := rules[i * 8 + 1 : i * 8 + 8];
        width := CASE rule[1] WHEN 1 THEN coalesce(known[at + 1], 0) WHEN 2 THEN 3 ELSE 2 END;
        IF rule[1] = 1 THEN at := at + 1; END IF;
        state := coalesce(known[at + 1 : at + width], '{{}}');
        IF rule[1] <> 1 AND cardinality(state) = 0 THEN state := '{{0,0,0}}'; END IF;
        at := at + width;
        FOR j IN 1 .. cardinality(reserved) - 1 BY 2 LOOP
          state := {spend}(rule, state, reserved[j], reserved[j + 1]);
        END LOOP;
        IF pass = 2 THEN
          IF spends THEN state := {spend}(rule, state, now, cost); END IF;
          IF op = 'refund' AND rest > 0 THEN state := {give}(rule, state, now, rest); END IF;
          IF rule[1] = 1 THEN written := written || cardinality(state)::bigint; END IF;
          written := written || state[: CASE rule[1] WHEN 1 THEN cardinality(state) WHEN 2 THEN 3 ELSE 2 END];
        END IF;
        last := state;
        FOR j IN 1 .. cardinality(coming) - 1 BY 2 LOOP
          last := {spend}(rule, last, coming[j], coming[j + 1]);
        END LOOP;
        IF pass = 1 THEN
          due := greatest(due, {due}(rule, last, from_then, cost));
        ELSE
          kept := greatest(kept, {full}(rule, last));
        END IF;
      END LOOP;
      IF pass = 1 THEN
        IF due - now > patience THEN RETURN now || known; END IF;
        IF due > now THEN coming := coming || ARRAY[due, cost]; ELSE spends := true; END IF;
      END IF;
    END LOOP;
    written := written || coming;
  END IF;

  IF kept <= now THEN
    DELETE FROM {table} WHERE place = key;
  ELSE
    UPDATE {table} SET numbers = written, keep_until = (kept / 600000000 + 2) * 600000000 WHERE place = key;
  END IF;
  IF random() < 0.001 THEN PERFORM {purge}(now); END IF;
  RETURN now || known;
END $$;
"""


# places: account, pair, source, device; NULL for what is not meant. n: the numbers of `SharedAttempts`. Returns the
# clock, then the four states before, each preceded by its length.
_ATTEMPT = """
CREATE OR REPLACE FUNCTION {wait}(state bigint[], now bigint, stop bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN state IS NULL THEN 0 WHEN state[1] >= stop THEN 4611686018427387904
    ELSE greatest(0, state[2] - now) END
$$;

CREATE OR REPLACE FUNCTION {count}(state bigint[], change bigint, now bigint, generation bigint, n bigint[])
RETURNS bigint[] LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN change < 0 AND coalesce(state[1], 0) = 0 THEN state ELSE (
    SELECT ARRAY[
      number,
      CASE WHEN change < 0 THEN least(state[2], now + pause) ELSE now + pause END,
      CASE WHEN change < 0 THEN state[3] ELSE generation END,
      coalesce(state[4], 0)
    ]
    FROM (SELECT coalesce(state[1], 0) + change AS number) AS one,
      LATERAL (SELECT CASE WHEN number < n[1] THEN 0
        ELSE least(n[3], n[2]::numeric * power(2::numeric, least(number - n[1], 62)))::bigint END AS pause) AS two
  ) END
$$;

CREATE OR REPLACE FUNCTION {attempt}(places bytea[], op text, told bigint, claim bigint, n bigint[])
RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
DECLARE
  now bigint; reply bigint[]; rule bigint[] := n[8:15]; generation bigint := 0; row record; after bigint[]; i int;
  found bigint[]; known_pair bigint[]; account bigint[]; pair bigint[]; source bigint[]; device bigint[];
  before text[] := '{{"{{}}","{{}}","{{}}","{{}}"}}';
BEGIN
  IF op <> 'look' THEN
    -- In one order for everybody, so that nobody waits for somebody who waits for him.
    FOR row IN SELECT DISTINCT p FROM unnest(places) AS p WHERE p IS NOT NULL ORDER BY p LOOP
      INSERT INTO {table} VALUES (row.p, '{{}}', 0) ON CONFLICT (place) DO UPDATE SET keep_until = {table}.keep_until;
    END LOOP;
  END IF;
  now := coalesce(told, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint);
  FOR row IN SELECT place, numbers FROM {table} WHERE place = ANY (places) LOOP
    FOR i IN 1 .. 4 LOOP
      IF places[i] = row.place THEN before[i] := row.numbers::text; END IF;
    END LOOP;
  END LOOP;
  reply := ARRAY[now];
  FOR i IN 1 .. 4 LOOP
    found := before[i]::bigint[];
    reply := reply || cardinality(found)::bigint || found;
    IF cardinality(found) = 0 OR i <> 3 AND found[4] <= now OR i = 3 AND found[1] < now THEN
      found := NULL;
    END IF;
    CASE i WHEN 1 THEN account := found; WHEN 2 THEN pair := found;
      WHEN 3 THEN source := found; ELSE device := found; END CASE;
  END LOOP;
  IF op = 'look' THEN RETURN reply; END IF;
  generation := coalesce(account[3], 0);
  -- What was written under another generation than the account's has no failures any more.
  known_pair := CASE WHEN pair[3] = generation THEN pair END;

  IF op = 'reserve' AND device IS NOT NULL THEN
    after := CASE WHEN device[3] = generation THEN device ELSE ARRAY[0, 0, generation, device[4]] END;
    IF {wait}(after, now, n[4]) = 0 THEN device := {count}(after, 1, now, generation, n); END IF;
  ELSIF op = 'reserve' THEN
    IF {wait}(account, now, n[4]) = 0 AND {wait}(known_pair, now, n[4]) = 0
      AND {due}(rule, coalesce(source, '{{0,0}}'), now, 1) <= now
    THEN
      IF coalesce(known_pair[1], 0) = 0 THEN source := {spend}(rule, coalesce(source, '{{0,0}}'), now, 1); END IF;
      account := {count}(account, 1, now, generation, n);
      account[4] := account[2] + n[5];
      pair := {count}(known_pair, 1, now, generation, n);
      pair[4] := pair[2] + n[6];
    END IF;
  ELSIF op = 'succeed' THEN
    IF claim <> 3 THEN
      account := CASE WHEN generation <> 0 THEN ARRAY[0, 0, generation, account[4]] END;
      pair := NULL;
      IF claim = 2 AND source IS NOT NULL THEN source := nullif({give}(rule, source, now, 1), '{{0,0}}'); END IF;
    END IF;
    device := ARRAY[0, 0, generation, now + n[7]];
  ELSIF op = 'cancel' THEN
    IF claim = 3 THEN
      device := {count}(device, -1, now, generation, n);
    ELSIF claim <> 0 THEN
      account := {count}(account, -1, now, generation, n);
      pair := {count}(pair, -1, now, generation, n);
      IF claim = 2 AND source IS NOT NULL THEN source := nullif({give}(rule, source, now, 1), '{{0,0}}'); END IF;
    END IF;
  ELSE
    IF places[1] IS NOT NULL THEN
      account := ARRAY[0, 0, greatest(now, generation + 1), now + greatest(n[5], n[6], n[7])];
    END IF;
    source := NULL;
  END IF;

  FOR i IN 1 .. 4 LOOP
    CONTINUE WHEN places[i] IS NULL;
    after := CASE i WHEN 1 THEN account WHEN 2 THEN pair WHEN 3 THEN source ELSE device END;
    IF after IS NULL THEN
      DELETE FROM {table} WHERE place = places[i];
    ELSIF after::text <> before[i] THEN
      UPDATE {table} SET numbers = after,
        keep_until = (CASE i WHEN 3 THEN after[1] ELSE after[4] END / 600000000 + 2) * 600000000
      WHERE place = places[i];
    END IF;
  END LOOP;
  IF random() < 0.001 THEN PERFORM {purge}(now); END IF;
  RETURN reply;
END $$;
"""


def functions(table: str) -> dict[str, str]:
    """Return the names of what belongs to a table; they carry a version, so that others are made where it changes."""
    return {name: f"{table}_{name}_2" for name in _FUNCTIONS}


def definitions(table: str) -> str:
    """Return the statements that create the table and its functions, and change nothing if they exist."""
    index = f"{table.rpartition('.')[2]}_keep_until"
    names = {"table": table, "index": index, "circuits": f"{table}_circuits", **functions(table)}
    return "".join(text.format(**names) for text in (_TABLE, _COUNTERS, _PURGE, _HIT_ONE, _DECIDE, _ATTEMPT, BALLOTS))
