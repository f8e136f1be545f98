"""What transactions can see of each other at each isolation level, anomaly by anomaly.

The anomalies are those of Martin Kleppmann's Hermitage project, which tests databases for what their isolation levels
really do; their names are those of Adya's thesis and of Berenson et al. The read-only anomaly is from Fekete, O'Neil
and O'Neil. How to read a script: see `interleaving`.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
import pytest
from interleaving import ENDS, LEVELS, Stage, Way, steps_of

from reliakit.database import Isolation

TABLE = """
    DROP TABLE IF EXISTS item;
    CREATE TABLE item (id int PRIMARY KEY, value int NOT NULL);
    INSERT INTO item VALUES (1, 10), (2, 20);
"""
ALL = "SELECT * FROM item ORDER BY id"


@dataclass(frozen=True)
class Anomaly:
    """One anomaly.

    Attributes:
        name: What it is called.
        what: What goes wrong where it is allowed.
        verdicts: For READ COMMITTED, REPEATABLE READ and SERIALIZABLE, "allowed" or what prevents it: "waits" for
            the other's row, reads from a "snapshot", or fails with "40001".
        script: How it comes about.
    """

    name: str
    what: str
    verdicts: tuple[str, str, str]
    script: str


ANOMALIES = (
    Anomaly(
        "G0, dirty write",
        "two transactions change two rows, and each wins one of them",
        ("waits", "40001", "40001"),
        """
        1: UPDATE item SET value = 11 WHERE id = 1
        2: UPDATE item SET value = 12 WHERE id = 1                | waits
        1: UPDATE item SET value = 21 WHERE id = 2
        1: commit
        2: ...                                                    | done | 40001 | 40001
        2: UPDATE item SET value = 22 WHERE id = 2                | done | - | -
        2: commit                                                 | done | - | -
        3: SELECT * FROM item ORDER BY id                         | 1=12 2=22 | 1=11 2=21 | 1=11 2=21
        3: commit
        """,
    ),
    Anomaly(
        "G1a, aborted read",
        "a transaction reads what another one takes back",
        ("snapshot", "snapshot", "snapshot"),
        """
        1: UPDATE item SET value = 101 WHERE id = 1
        2: SELECT * FROM item ORDER BY id                         | 1=10 2=20
        1: rollback
        2: SELECT * FROM item ORDER BY id                         | 1=10 2=20
        2: commit
        """,
    ),
    Anomaly(
        "G1b, intermediate read",
        "a transaction reads what another one has not finished",
        ("snapshot", "snapshot", "snapshot"),
        """
        1: UPDATE item SET value = 101 WHERE id = 1
        2: SELECT * FROM item ORDER BY id                         | 1=10 2=20
        1: UPDATE item SET value = 11 WHERE id = 1
        1: commit
        2: SELECT * FROM item ORDER BY id                         | 1=11 2=20 | 1=10 2=20 | 1=10 2=20
        2: commit
        """,
    ),
    Anomaly(
        "G1c, circular information flow",
        "each of two transactions reads what the other one writes",
        ("snapshot", "snapshot", "40001"),
        """
        1: UPDATE item SET value = 11 WHERE id = 1
        2: UPDATE item SET value = 22 WHERE id = 2
        1: SELECT * FROM item WHERE id = 2                        | 2=20
        2: SELECT * FROM item WHERE id = 1                        | 1=10
        1: commit
        2: commit                                                 | done | done | 40001
        """,
    ),
    Anomaly(
        "OTV, observed transaction vanishes",
        "a transaction sees a change of another one, and later only some of its changes",
        ("waits", "40001", "40001"),
        """
        1: UPDATE item SET value = 11 WHERE id = 1
        1: UPDATE item SET value = 19 WHERE id = 2
        2: UPDATE item SET value = 12 WHERE id = 1                | waits
        1: commit
        2: ...                                                    | done | 40001 | 40001
        3: SELECT * FROM item WHERE id = 1                        | 1=11
        2: UPDATE item SET value = 18 WHERE id = 2                | done | - | -
        3: SELECT * FROM item WHERE id = 2                        | 2=19
        2: commit                                                 | done | - | -
        3: SELECT * FROM item ORDER BY id                         | 1=12 2=18 | 1=11 2=19 | 1=11 2=19
        3: commit
        """,
    ),
    Anomaly(
        "PMP, predicate many preceders",
        "the same condition finds more rows the second time",
        ("allowed", "snapshot", "snapshot"),
        """
        1: SELECT * FROM item WHERE value = 30                    | nothing
        2: INSERT INTO item VALUES (3, 30)
        2: commit
        1: SELECT * FROM item WHERE value % 3 = 0                 | 3=30 | nothing | nothing
        1: commit
        """,
    ),
    Anomaly(
        "PMP, write",
        "a condition finds neither the rows that met it before another transaction nor those that do after it",
        ("allowed", "40001", "40001"),
        """
        1: UPDATE item SET value = value + 10
        2: SELECT * FROM item WHERE value = 20                    | 2=20
        2: DELETE FROM item WHERE value = 20                      | waits
        1: commit
        2: ...                                                    | nothing | 40001 | 40001
        2: SELECT * FROM item WHERE value = 20                    | 1=20 | - | -
        2: commit                                                 | done | - | -
        """,
    ),
    Anomaly(
        "P4, lost update",
        "two transactions read a value and write what they made of it, and one of both is overwritten",
        ("allowed", "40001", "40001"),
        """
        1: SELECT * FROM item WHERE id = 1                        | 1=10
        2: SELECT * FROM item WHERE id = 1                        | 1=10
        1: UPDATE item SET value = 11 WHERE id = 1
        2: UPDATE item SET value = 12 WHERE id = 1                | waits
        1: commit
        2: ...                                                    | done | 40001 | 40001
        2: commit                                                 | done | - | -
        """,
    ),
    Anomaly(
        "G-single, read skew",
        "one row is read from before another transaction, one from after it",
        ("allowed", "snapshot", "snapshot"),
        """
        1: SELECT * FROM item WHERE id = 1                        | 1=10
        2: UPDATE item SET value = 12 WHERE id = 1
        2: UPDATE item SET value = 18 WHERE id = 2
        2: commit
        1: SELECT * FROM item WHERE id = 2                        | 2=18 | 2=20 | 2=20
        1: commit
        """,
    ),
    Anomaly(
        "G-single, predicate dependencies",
        "a condition is judged on what another transaction changed after an earlier one was judged",
        ("allowed", "snapshot", "snapshot"),
        """
        1: SELECT * FROM item WHERE value % 5 = 0 ORDER BY id     | 1=10 2=20
        2: UPDATE item SET value = 12 WHERE value = 10
        2: commit
        1: SELECT * FROM item WHERE value % 3 = 0                 | 1=12 | nothing | nothing
        1: commit
        """,
    ),
    Anomaly(
        "G-single, write predicate",
        "a row is read, and is not there when the same transaction wants to delete it",
        ("allowed", "40001", "40001"),
        """
        1: SELECT * FROM item WHERE id = 1                        | 1=10
        2: UPDATE item SET value = 12 WHERE id = 1
        2: UPDATE item SET value = 18 WHERE id = 2
        2: commit
        1: DELETE FROM item WHERE value = 20                      | nothing | 40001 | 40001
        1: commit                                                 | done | - | -
        """,
    ),
    Anomaly(
        "G2-item, write skew",
        "each of two transactions changes one of two rows that both have read",
        ("allowed", "allowed", "40001"),
        """
        1: SELECT * FROM item ORDER BY id                         | 1=10 2=20
        2: SELECT * FROM item ORDER BY id                         | 1=10 2=20
        1: UPDATE item SET value = 11 WHERE id = 1
        2: UPDATE item SET value = 21 WHERE id = 2
        1: commit
        2: commit                                                 | done | done | 40001
        """,
    ),
    Anomaly(
        "G2, anti-dependency cycle",
        "each of two transactions adds a row that meets the condition under which the other one found none",
        ("allowed", "allowed", "40001"),
        """
        1: SELECT * FROM item WHERE value % 3 = 0                 | nothing
        2: SELECT * FROM item WHERE value % 3 = 0                 | nothing
        1: INSERT INTO item VALUES (3, 30)
        2: INSERT INTO item VALUES (4, 42)
        1: commit
        2: commit                                                 | done | done | 40001
        """,
    ),
    Anomaly(
        "G2, two edges (read-only anomaly)",
        "a report sees a state that no order of the transactions explains",
        ("allowed", "allowed", "40001"),
        """
        1: SELECT * FROM item ORDER BY id                         | 1=10 2=20
        2: UPDATE item SET value = value + 5 WHERE id = 2
        2: commit
        3: SELECT * FROM item ORDER BY id                         | 1=10 2=25
        3: commit
        1: UPDATE item SET value = 0 WHERE id = 1                 | done | done | 40001
        1: commit                                                 | done | done | -
        """,
    ),
)
# What a level allows, a lock still prevents.
REMEDIES = (
    Anomaly(
        "P4 with FOR UPDATE",
        "the second one reads when the first one has written",
        ("waits", "40001", "40001"),
        """
        1: SELECT * FROM item WHERE id = 1 FOR UPDATE             | 1=10
        2: SELECT * FROM item WHERE id = 1 FOR UPDATE             | waits
        1: UPDATE item SET value = value + 1 WHERE id = 1
        1: commit
        2: ...                                                    | 1=11 | 40001 | 40001
        2: UPDATE item SET value = value + 1 WHERE id = 1         | done | - | -
        2: commit                                                 | done | - | -
        """,
    ),
    Anomaly(
        "G2-item with FOR UPDATE",
        "the second one reads both rows when the first one has changed one",
        ("waits", "40001", "40001"),
        """
        1: SELECT * FROM item ORDER BY id FOR UPDATE              | 1=10 2=20
        2: SELECT * FROM item ORDER BY id FOR UPDATE              | waits
        1: UPDATE item SET value = 11 WHERE id = 1
        1: commit
        2: ...                                                    | 1=11 2=20 | 40001 | 40001
        2: UPDATE item SET value = 21 WHERE id = 2                | done | - | -
        2: commit                                                 | done | - | -
        """,
    ),
)
SCRIPTS = ANOMALIES + REMEDIES
ATTEMPT = [Way(asynchronous=False, retried=False), Way(asynchronous=True, retried=False)]
RUN = [Way(asynchronous=False, retried=True), Way(asynchronous=True, retried=True)]


def by_name(value: object) -> str:
    if isinstance(value, Anomaly):
        return value.name
    return value.name.lower() if isinstance(value, Isolation) else str(value)


@pytest.fixture
def connection(reliakit_dsn: str):
    with psycopg.connect(reliakit_dsn, autocommit=True) as connection:
        connection.execute(TABLE)
        yield connection


@pytest.mark.parametrize("way", ATTEMPT, ids=by_name)
@pytest.mark.parametrize("level", LEVELS, ids=by_name)
@pytest.mark.parametrize("anomaly", SCRIPTS, ids=by_name)
def test_an_isolation_level_shows_what_it_allows_and_nothing_else(
    connection: psycopg.Connection, reliakit_dsn: str, anomaly: Anomaly, level: Isolation, way: Way
) -> None:
    Stage(reliakit_dsn, level, way).play(anomaly.script)


@pytest.mark.parametrize("way", RUN, ids=by_name)
@pytest.mark.parametrize(
    ("anomaly", "level"),
    [
        (anomaly, level)
        for anomaly in SCRIPTS
        for level, verdict in zip(LEVELS, anomaly.verdicts, strict=True)
        if verdict == "40001"
    ],
    ids=by_name,
)
def test_what_40001_prevents_is_tried_again_and_ends_as_if_one_ran_after_the_other(
    connection: psycopg.Connection, reliakit_dsn: str, anomaly: Anomaly, level: Isolation, way: Way
) -> None:
    actors = Stage(reliakit_dsn, level, way).play(anomaly.script)
    losers = [number for number, actor in actors.items() if actor.failed]
    assert len(losers) == 1
    assert actors[losers[0]].attempts == 2
    assert actors[losers[0]].shows() == "done"
    ended = connection.execute(ALL).fetchall()

    connection.execute(TABLE)
    steps = steps_of(anomaly.script)
    order = [step.actor for step in steps if step.action == "commit" and step.actor not in losers] + losers
    for step in sorted(steps, key=lambda step: order.index(step.actor)):
        if step.action not in (*ENDS, "..."):
            connection.execute(step.action)
    assert ended == connection.execute(ALL).fetchall()


@pytest.mark.parametrize("anomaly", SCRIPTS, ids=by_name)
def test_each_verdict_is_borne_out_by_its_script(anomaly: Anomaly) -> None:
    for number, verdict in enumerate(anomaly.verdicts):
        shown = [step.expected[number] for step in steps_of(anomaly.script)]
        assert ("40001" in shown) is (verdict == "40001")
        assert verdict != "waits" or "waits" in shown
        assert verdict != "snapshot" or "waits" not in shown


@pytest.mark.parametrize("way", ATTEMPT, ids=by_name)
def test_a_script_that_expects_something_else_fails_and_leaves_nobody_waiting(
    connection: psycopg.Connection, reliakit_dsn: str, way: Way
) -> None:
    wrong = """
        1: UPDATE item SET value = 11 WHERE id = 1
        2: UPDATE item SET value = 12 WHERE id = 1
    """
    with pytest.raises(AssertionError, match="showed waits, not done"):
        Stage(reliakit_dsn, Isolation.READ_COMMITTED, way).play(wrong)
    assert connection.execute(ALL).fetchall() == [(1, 10), (2, 20)]
