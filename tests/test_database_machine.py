"""What a transaction decides, without a server: propagation, joining, the verdict on COMMIT, retries."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliakit.core.backoff import Backoff
from reliakit.core.errors import ConfigurationError, TransactionUsageError
from reliakit.database import Isolation, Propagation, TransactionRetry, machine
from reliakit.database.gate import Gate, Lease
from reliakit.database.machine import Step
from reliakit.database.settings import TransactionOptions, milliseconds


class Naive:
    """A thread's blocks as a list of words; what a new block does is read off the end of it."""

    def __init__(self) -> None:
        self.blocks: list[str] = []

    def inside(self) -> str:
        for kind in reversed(self.blocks):
            if kind != "joined":
                return "statements" if kind == "bare" else "transaction"
        return "nothing"

    def enter(self, propagation: Propagation) -> str | None:
        here = self.inside()
        table = {
            ("required", "nothing"): "new",
            ("required", "statements"): "new",
            ("required", "transaction"): "joined",
            ("nested", "nothing"): "new",
            ("nested", "statements"): "new",
            ("nested", "transaction"): "savepoint",
            ("mandatory", "transaction"): "joined",
            ("supports", "nothing"): "bare",
            ("supports", "statements"): "joined",
            ("supports", "transaction"): "joined",
            ("never", "nothing"): "bare",
            ("never", "statements"): "joined",
        }
        return "new" if propagation is Propagation.REQUIRES_NEW else table.get((propagation.value, here))


NAMES = {Step.BEGIN: "new", Step.JOIN: "joined", Step.SAVEPOINT: "savepoint", Step.BARE: "bare"}


@given(st.lists(st.one_of(st.sampled_from(Propagation), st.none()), max_size=20))
def test_propagation_does_what_its_table_says_in_any_nesting(history: list[Propagation | None]) -> None:
    naive = Naive()
    for wish in history:
        if wish is None:
            if naive.blocks:
                naive.blocks.pop()
            continue
        expected = naive.enter(wish)
        if expected is None:
            with pytest.raises(TransactionUsageError, match=wish.name):
                machine.step(wish, naive.inside(), "main")
        else:
            assert NAMES[machine.step(wish, naive.inside(), "main")] == expected
            naive.blocks.append(expected)


def objection(**wishes: object) -> str | None:
    return machine.objection_to_join(
        TransactionOptions(**wishes), isolation=Isolation.REPEATABLE_READ, read_only=True, deferrable=False
    )


def test_joining_asks_for_nothing_that_the_outer_transaction_cannot_give() -> None:
    assert objection(read_only=True) is None
    assert objection(read_only=True, isolation=Isolation.REPEATABLE_READ) is None
    assert "SERIALIZABLE" in (objection(read_only=True, isolation=Isolation.SERIALIZABLE) or "")
    assert "READ COMMITTED" in (objection(read_only=True, isolation=Isolation.READ_COMMITTED) or "")
    assert "writes" in (objection() or "")
    assert "deferrable" in (objection(read_only=True, deferrable=True) or "")


@pytest.mark.parametrize(
    ("tag", "sent", "alive", "failed", "sqlstate", "verdict"),
    [
        (b"COMMIT", True, True, False, None, "committed"),
        (b"ROLLBACK", True, True, False, None, "rolled_back"),
        (None, False, False, True, None, "rolled_back"),
        (None, True, True, True, "23505", "rolled_back"),
        (None, True, True, True, "40001", "rolled_back"),
        (None, True, True, True, "40003", "unknown"),
        (None, True, True, True, "08007", "unknown"),
        (None, True, False, True, "57P01", "unknown"),
        (None, True, False, True, None, "unknown"),
        (None, True, False, False, None, "unknown"),
    ],
)
def test_only_the_server_says_what_became_of_a_commit(
    tag: bytes | None, sent: bool, alive: bool, failed: bool, sqlstate: str | None, verdict: str
) -> None:
    judged = machine.judge_commit(tag, sent=sent, alive=alive, answered_with_error=failed, sqlstate=sqlstate)
    assert judged == verdict


def test_begin_and_its_limits_are_one_command() -> None:
    command = machine.begin_command(
        Isolation.SERIALIZABLE, read_only=True, deferrable=True, limit=milliseconds(0.25), lock_timeout=0.1
    )
    assert command == (
        b"BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE; SET LOCAL statement_timeout = 250; "
        b"SET LOCAL idle_in_transaction_session_timeout = 250; SET LOCAL lock_timeout = 100"
    )


def test_no_limit_ever_becomes_the_zero_that_means_none() -> None:
    assert milliseconds(0.0000001) == 1
    assert milliseconds(1e12) == 2**31 - 1


def pause(error: BaseException, **changes: object) -> float | None:
    known: dict[str, object] = {
        "began": True,
        "conflict": machine.conflict_state(error) is not None,
        "attempt": 1,
        "retry": TransactionRetry(3, Backoff(base=1.0, jitter=0.0)),
        "spent": 0.0,
        "left": 10.0,
        "random": lambda: 0.5,
    }
    return machine.pause_before_retry(error, **(known | changes))  # type: ignore[arg-type]


def test_only_lost_races_and_connections_before_the_first_statement_are_tried_again() -> None:
    assert pause(psycopg.errors.SerializationFailure()) == 1.0
    assert pause(psycopg.errors.DeadlockDetected(), attempt=2) == 2.0
    assert pause(psycopg.errors.UniqueViolation()) is None
    assert pause(psycopg.errors.LockNotAvailable()) is None
    assert pause(ValueError()) is None
    assert pause(psycopg.OperationalError("server closed the connection"), began=False) == 1.0
    assert pause(psycopg.OperationalError("server closed the connection"), began=True) is None
    assert pause(psycopg.errors.AdminShutdown(), began=True) is None
    assert pause(KeyboardInterrupt()) is None


def test_pauses_after_a_lost_race_are_as_long_as_the_attempt_and_leave_time_for_others() -> None:
    lost, cut = psycopg.errors.SerializationFailure(), psycopg.OperationalError("server closed the connection")
    usual: dict[str, Any] = {"retry": TransactionRetry(20), "random": lambda: 1.0}
    assert [pause(lost, attempt=number, **usual) for number in (1, 2, 3)] == [0.01, 0.02, 0.04]
    assert [pause(lost, attempt=number, spent=0.3, **usual) for number in (1, 2, 3, 4)] == [0.3, 0.6, 1.2, 2.0]
    assert [pause(lost, attempt=9, left=left, **usual) for left in (4.0, 0.4)] == [1.0, 0.1]
    assert pause(lost, spent=9.0, left=4.0, **usual) == 1.0
    assert pause(lost, left=0.0, **usual) is pause(lost, left=-1.0, **usual) is None
    assert pause(cut, began=False, conflict=False, attempt=9, spent=9.0, **usual) == 0.5
    assert pause(lost, attempt=2, spent=0.3, left=0.5) is None  # pauses that were given stay as they are


def test_a_lost_race_is_recognized_under_what_the_code_wrapped_it_in() -> None:
    wrapped = RuntimeError("could not book")
    wrapped.__cause__ = LookupError()
    wrapped.__cause__.__cause__ = psycopg.errors.SerializationFailure()
    assert machine.conflict_state(wrapped) == "40001"
    assert pause(wrapped) == 1.0


def test_no_attempt_beyond_max_attempts_and_no_pause_beyond_the_deadline() -> None:
    lost = psycopg.errors.SerializationFailure()
    assert pause(lost, attempt=3) is None
    assert pause(lost, left=0.9) is None


def test_no_attempt_that_its_deadline_would_only_cut() -> None:
    lost = psycopg.errors.SerializationFailure()
    assert pause(lost, left=1.011) == 1.0
    assert pause(lost, left=1.009) is None
    assert pause(lost, left=0.009, retry=TransactionRetry(3)) is None


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"isolation": "SERIALIZABLE"}, "isolation"),
        ({"propagation": "required"}, "propagation"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"lock_timeout": -1}, "lock_timeout"),
        ({"read_only": 1}, "read_only"),
        ({"operation": ""}, "operation"),
    ],
)
def test_a_wrong_option_is_named(settings: dict[str, object], argument: str) -> None:
    with pytest.raises(ConfigurationError, match=argument):
        TransactionOptions(**settings)


def test_a_retry_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_attempts"):
        TransactionRetry(0)
    with pytest.raises(ConfigurationError, match="wait"):
        TransactionRetry(wait=1.0)  # type: ignore[arg-type]


class Bell:
    def ring(self) -> None:
        pass


@given(
    st.integers(1, 3),
    st.lists(st.tuples(st.sampled_from(["enter", "leave", "drop"]), st.integers(0, 7)), max_size=60),
)
def test_every_slot_has_one_holder_and_nobody_waits_before_a_free_one(
    size: int, script: list[tuple[str, int]]
) -> None:
    gate = Gate("main", size)
    leases: dict[int, Lease] = {}
    queue: list[int] = []
    holders: list[int] = []
    for verb, who in script:
        if verb == "enter" and who not in leases:
            leases[who] = Lease(gate, object(), 0.0, (None, 0))  # type: ignore[arg-type]
            got = gate.enter(leases[who], Bell)
            assert got is (len(holders) < size)
            (holders if got else queue).append(who)
        elif verb in ("leave", "drop") and who in leases:
            if verb == "leave":
                gate.leave(leases[who])
                gate.leave(leases[who])
            elif who in queue:
                continue  # a queued lease is referenced by the queue until it leaves
            del leases[who]
            if who in queue:
                queue.remove(who)
            else:
                holders.remove(who)
                if queue:
                    holders.append(queue.pop(0))
        assert sorted(slot.holder for slot in gate.held()) == sorted(leases[name].number for name in holders)
        assert [name for name in leases if gate.granted(leases[name])] == [name for name in leases if name in holders]
        assert gate.waiting == len(queue)
