"""The statements of an outbox: its table, and what publishing, delivering and looking after messages ask the server.

A row is a message. It is pending until it is deleted, which is when it was delivered, or set aside, which is what
`dead_at` says. A pending message is due from `not_before` on.
"""

from __future__ import annotations

__all__ = ["Statements"]

_DDL = """\
CREATE TABLE IF NOT EXISTS {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic text NOT NULL,
    key text COLLATE "C",
    payload json NOT NULL,
    headers json NOT NULL,
    published_at timestamptz NOT NULL DEFAULT now(),
    not_before timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    error text,
    dead_at timestamptz
);
CREATE INDEX IF NOT EXISTS {index}_key ON {table} (key, id) WHERE dead_at IS NULL AND key IS NOT NULL;
CREATE INDEX IF NOT EXISTS {index}_keyless ON {table} (id) WHERE dead_at IS NULL AND key IS NULL;
"""
# The transaction's id is fetched along, for a CommitUnknownError to carry: on its own it would cost a round trip.
# One value holds both, whatever the connection's row factory is.
_PUBLISH = """
WITH {turn}message AS (
    INSERT INTO {table} (topic, key, payload, headers)
    SELECT %s::text, %s::text, %s::text::json, %s::text::json{after_turn} RETURNING id
) SELECT concat_ws(' ', id, pg_current_xact_id()){notify} FROM message"""
# An order that survives commits needs numbers drawn in the order of the commits. So the publishers of a key queue
# for a lock first, draw the number while they hold it, and keep it until they have ended. All in one statement: a row
# of the INSERT is made, and its number drawn, only once the lock's row has been fetched.
_TURN = "turn AS MATERIALIZED (SELECT pg_advisory_xact_lock(%s)), "
_NOTIFY = ", pg_notify('{name}', '')"

_MESSAGE = "o.id, o.topic, o.key, o.payload::text, o.headers::text, extract(epoch FROM o.published_at)::float8"
_TAKEN = f"{_MESSAGE}, o.attempts + 1, o.error"  # counting the attempt that begins now
_IS_DUE = "o.dead_at IS NULL AND o.not_before <= coalesce(to_timestamp(%(now)s::float8), now())"
# Steps from key to key through the index, so that neither one key's thousands of messages nor a thousand keys are
# read for a few messages. A message that waits for its next attempt is still the first of its key.
_HEADS = """
WITH RECURSIVE walk AS (
    (SELECT key, id FROM {table} WHERE dead_at IS NULL AND key > %(after)s ORDER BY key, id LIMIT 1)
    UNION ALL
    SELECT next.key, next.id FROM walk CROSS JOIN LATERAL (
        SELECT key, id FROM {table} WHERE dead_at IS NULL AND key > walk.key ORDER BY key, id LIMIT 1
    ) next
)
SELECT head.* FROM walk CROSS JOIN LATERAL (
    SELECT {taken} FROM {table} o WHERE o.id = walk.id AND {is_due} FOR UPDATE SKIP LOCKED
) head LIMIT %(limit)s"""
_FOLLOWERS = """
SELECT follower.* FROM unnest(%(keys)s::text[], %(ids)s::bigint[]) AS head (key, id) CROSS JOIN LATERAL (
    SELECT {taken} FROM {table} o
    WHERE o.dead_at IS NULL AND o.key = head.key AND o.id > head.id ORDER BY o.id LIMIT %(limit)s
) follower ORDER BY follower.id LIMIT %(limit)s"""
_KEYLESS = """
SELECT {taken} FROM {table} o WHERE o.key IS NULL AND {is_due}
ORDER BY o.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED"""
_DONE = "DELETE FROM {table} WHERE id = ANY(%s::bigint[])"
# A message whose handler outlived its claim may belong to another relay by now.
_FAILED = """
UPDATE {table} o SET attempts = f.attempts, error = f.error,
    not_before = clock_timestamp() + make_interval(secs => coalesce(f.delay, 0)),
    dead_at = CASE WHEN f.delay IS NULL THEN clock_timestamp() END
FROM unnest(%s::bigint[], %s::integer[], %s::float8[], %s::text[]) AS f (id, attempts, delay, error)
WHERE o.id = f.id AND o.id IN (SELECT id FROM {table} WHERE id = ANY(%s::bigint[]) FOR UPDATE SKIP LOCKED)"""

_DEAD = "SELECT {message}, o.attempts, o.error FROM {table} o WHERE o.dead_at IS NOT NULL ORDER BY o.id LIMIT %s"
_REDRIVE = """
WITH live AS (
    UPDATE {table} SET dead_at = NULL, attempts = 0, error = NULL, not_before = now()
    WHERE dead_at IS NOT NULL AND (%s::bigint[] IS NULL OR id = ANY(%s::bigint[])) RETURNING 1
) SELECT count(*){notify} FROM live"""
_STATS = """
SELECT count(*) FILTER (WHERE dead_at IS NULL), count(dead_at),
    extract(epoch FROM clock_timestamp() - min(published_at) FILTER (WHERE dead_at IS NULL))::float8
FROM {table}"""


class Statements:
    """The statements for one table.

    Args:
        name: The table's name, which was checked: it stands in the statements as it is.
        notify: Whether messages that become due wake the relays.

    Attributes:
        ddl: Creates the table.
        publish: Writes a message without a key.
        publish_keyed: Writes a message with a key; the number of the key's lock comes first.
        heads: Takes the first message of each key after a given key.
        followers: Reads what follows those.
        keyless: Takes messages without a key.
        done: Deletes messages that were delivered.
        failed: Records attempts that failed.
        dead: Reads messages that were set aside.
        redrive: Makes them due again.
        stats: Counts.
    """

    def __init__(self, name: str, *, notify: bool) -> None:
        table = ".".join(f'"{part}"' for part in name.split("."))
        ring = _NOTIFY.format(name=name) if notify else ""

        def made(statement: str, **parts: str) -> bytes:
            return statement.format(table=table, notify=ring, taken=_TAKEN, is_due=_IS_DUE, **parts).encode("ascii")

        self.ddl: str = _DDL.format(table=table, index=name.replace(".", "_"))
        self.publish: bytes = made(_PUBLISH, turn="", after_turn="")
        self.publish_keyed: bytes = made(_PUBLISH, turn=_TURN, after_turn=" FROM turn")
        self.heads: bytes = made(_HEADS)
        self.followers: bytes = made(_FOLLOWERS)
        self.keyless: bytes = made(_KEYLESS)
        self.done: bytes = made(_DONE)
        self.failed: bytes = made(_FAILED)
        self.dead: bytes = made(_DEAD, message=_MESSAGE)
        self.redrive: bytes = made(_REDRIVE)
        self.stats: bytes = made(_STATS)
