"""Propagation: any nesting of blocks comes to what a naive model says, in both colours; no connection is shared."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import anyio
import psycopg
import pytest
from database_drivers import COLOURS, SOURCES, all_obtainable, block, got, opened, play, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliakit.core.errors import TransactionRolledBackError, TransactionUsageError
from reliakit.core.flow import run_blocking
from reliakit.database import Propagation

ERRORS = (LookupError, psycopg.Error, TransactionRolledBackError, TransactionUsageError)


@dataclass(frozen=True)
class Block:
    """A block, whether the code around it swallows what leaves it, and what is done in it."""

    propagation: Propagation
    swallow: bool
    body: list[Any]


STEPS = ["insert", "insert", "fail", "bad sql", "bad sql swallowed", "rollback only", "hooks"]
programs = st.lists(
    st.recursive(
        st.sampled_from(STEPS),
        lambda inner: st.builds(Block, st.sampled_from(Propagation), st.booleans(), st.lists(inner, max_size=4)),
        max_leaves=12,
    ).filter(lambda step: isinstance(step, Block)),
    min_size=1,
    max_size=3,
)


# What really happens


async def play_block(db: Any, program: Block, log: list[str], number: Callable[[], int]) -> None:
    try:
        async with block(db, propagation=program.propagation) as tx:
            log.append("entered")
            for step in program.body:
                if isinstance(step, Block):
                    await play_block(db, step, log, number)
                else:
                    await play_step(tx, step, log, number)
    except ERRORS as error:
        log.append(type(error).__name__)
        if not program.swallow:
            raise
    else:
        log.append("left")


async def play_step(tx: Any, step: str, log: list[str], number: Callable[[], int]) -> None:
    if step == "insert":
        await got(tx.execute("INSERT INTO item VALUES (%s)", (number(),)))
    elif step == "fail":
        raise LookupError
    elif step == "bad sql":
        await got(tx.execute("SELECT 1/0"))
    elif step == "bad sql swallowed":
        with contextlib.suppress(psycopg.Error):
            await got(tx.execute("SELECT 1/0"))
    elif step == "rollback only":
        tx.set_rollback_only()
    else:
        name = number()

        def hook(when: str) -> None:
            log.append(f"{when} {name}")
            raise RuntimeError("contained")

        tx.after_commit(partial(hook, "commit"))
        tx.after_rollback(partial(hook, "rollback"))


# What must happen


@dataclass
class Whole:
    """One transaction of the model; with `bare`, each statement commits by itself."""

    bare: bool = False
    rows: list[int] = field(default_factory=list)
    hooks: list[int] = field(default_factory=list)
    failed: bool = False


@dataclass
class Handle:
    whole: Whole
    doomed: bool = False
    deliberate: bool = False


class Failed(Exception):
    """An error of the model, known by the name of the real one."""


class Model:
    def __init__(self, number: Callable[[], int]) -> None:
        self.table: list[int] = []
        self.log: list[str] = []
        self.number = number

    def block(self, program: Block, outer: Handle | None) -> None:
        try:
            self.inside(program, outer)
        except Failed as error:
            self.log.append(str(error))
            if not program.swallow:
                raise
        else:
            self.log.append("left")

    def inside(self, program: Block, outer: Handle | None) -> None:
        wish = program.propagation
        in_transaction = outer is not None and not outer.whole.bare
        if wish is Propagation.MANDATORY and not in_transaction:
            raise Failed("TransactionUsageError")
        if wish is Propagation.NEVER and in_transaction:
            raise Failed("TransactionUsageError")
        if wish is Propagation.REQUIRES_NEW or (
            not in_transaction and wish in (Propagation.REQUIRED, Propagation.NESTED)
        ):
            self.whole(program, Handle(Whole()))
        elif outer is None:
            self.whole(program, Handle(Whole(bare=True)))
        elif wish is Propagation.NESTED:
            self.savepoint(program, outer)
        else:
            self.joined(program, outer)

    def body(self, program: Block, handle: Handle) -> Failed | None:
        self.log.append("entered")
        try:
            for step in program.body:
                self.block(step, handle) if isinstance(step, Block) else self.step(step, handle)
        except Failed as error:
            return error
        return None

    def step(self, step: str, handle: Handle) -> None:
        whole = handle.whole
        if step == "fail":
            raise Failed("LookupError")
        if step == "rollback only":
            handle.deliberate = True
        elif step == "hooks":
            whole.hooks.append(self.number())
        elif step == "insert":
            item = self.number()
            if whole.failed:
                raise Failed("InFailedSqlTransaction")
            (self.table if whole.bare else whole.rows).append(item)
        else:
            was_failed, whole.failed = whole.failed, not whole.bare
            if step == "bad sql":
                raise Failed("InFailedSqlTransaction" if was_failed else "DivisionByZero")

    def whole(self, program: Block, handle: Handle) -> None:
        whole, error = handle.whole, self.body(program, handle)
        if whole.bare:
            commits = error is None
        else:
            if error is None and not handle.deliberate and (handle.doomed or whole.failed):
                error = Failed("TransactionRolledBackError")
            commits = error is None and not handle.deliberate
        if commits:
            self.table += whole.rows
        self.log += [f"{'commit' if commits else 'rollback'} {hook}" for hook in whole.hooks]
        if error is not None:
            raise error

    def joined(self, program: Block, handle: Handle) -> None:
        error = self.body(program, handle)
        if error is not None:
            handle.doomed = True
            raise error

    def savepoint(self, program: Block, outer: Handle) -> None:
        whole = outer.whole
        if whole.failed:
            raise Failed("InFailedSqlTransaction")
        rows, hooks = len(whole.rows), len(whole.hooks)
        handle = Handle(whole)
        error = self.body(program, handle)
        if error is None and not handle.deliberate and (handle.doomed or whole.failed):
            error = Failed("TransactionRolledBackError")
        if error is not None or handle.deliberate:
            del whole.rows[rows:]
            del whole.hooks[hooks:]
            whole.failed = False
        if error is not None:
            raise error


def numbers() -> Callable[[], int]:
    return iter(range(10_000)).__next__


@pytest.mark.parametrize("colour", COLOURS)
def test_any_nesting_of_blocks_comes_to_what_the_model_says(reliakit_dsn: str, colour: str) -> None:
    async def play_all(db: Any, program: list[Block]) -> tuple[list[str], list[int]]:
        log: list[str] = []
        number = numbers()
        await got(db.execute("TRUNCATE item"))
        for top in program:
            with contextlib.suppress(*ERRORS):
                await play_block(db, top, log, number)
        rows = [row[0] for row in await got(db.fetch_all("SELECT id FROM item ORDER BY id"))]
        stats = db.stats()
        assert (stats.in_use, stats.leaked) == (0, 0)
        return log, rows

    with asyncio.Runner() as runner:
        drive: Callable[[Any], Any] = runner.run if colour == "tasks" else run_blocking
        stack = contextlib.AsyncExitStack()
        db = drive(stack.enter_async_context(opened(colour, reliakit_dsn, max_size=10)))
        drive(got_table(db))

        @settings(max_examples=150, suppress_health_check=list(HealthCheck))
        @given(programs)
        def check(program: list[Block]) -> None:
            model = Model(numbers())
            for top in program:
                with contextlib.suppress(Failed):
                    model.block(top, None)
            assert drive(play_all(db, program)) == (model.log, sorted(model.table))

        check()
        drive(all_obtainable(db))
        drive(stack.aclose())


async def got_table(db: Any) -> None:
    await got(db.execute("CREATE TABLE item (id int PRIMARY KEY)"))


@pytest.mark.anyio
async def test_whoever_inherits_a_tasks_context_gets_an_error_and_never_the_connection(reliakit_dsn: str) -> None:
    async with opened("tasks", reliakit_dsn) as db:
        refused: list[str] = []

        async def use(tx: Any, way: str) -> None:
            for attempt in (lambda: tx.execute("SELECT 1"), lambda: db.fetch_value("SELECT 1"), begin, nest):
                with pytest.raises(TransactionUsageError):
                    await attempt()
            with pytest.raises(TransactionUsageError):
                db.current()
            async with db.transaction(propagation=Propagation.REQUIRES_NEW) as own:
                assert await own.fetch_value("SELECT pg_backend_pid()") != tx.connection_pid
            refused.append(way)

        async def begin() -> None:
            async with db.transaction():
                pytest.fail("it began in somebody else's transaction")

        async def nest() -> None:
            async with db.transaction(propagation=Propagation.NESTED):
                pytest.fail("it nested in somebody else's transaction")

        def in_a_callback(tx: Any) -> None:
            with pytest.raises(TransactionUsageError):
                tx.connection  # noqa: B018
            with pytest.raises(TransactionUsageError):
                db.current()
            refused.append("callback")

        async with db.transaction() as tx:
            mine = Named(tx, await tx.fetch_value("SELECT pg_backend_pid()"))
            await asyncio.create_task(use(mine, "task"))
            await asyncio.gather(use(mine, "gather"))
            await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(use(mine, "shield"))), 10)
            async with anyio.create_task_group() as group:
                group.start_soon(use, mine, "anyio")
            await asyncio.create_task(use(mine, "copied"), context=contextvars.copy_context())
            await asyncio.to_thread(asyncio.run, nothing_inherited(db))
            asyncio.get_running_loop().call_soon(in_a_callback, tx)
            await asyncio.sleep(0)  # noqa: TID251 - a bare yield
            assert await tx.fetch_value("SELECT 1") == 1
        assert refused == ["task", "gather", "shield", "anyio", "copied", "callback"]
        await all_obtainable(db)


class Named:
    """A transaction and the process id of its backend."""

    def __init__(self, tx: Any, pid: int) -> None:
        self.execute = tx.execute
        self.connection_pid = pid


async def nothing_inherited(db: Any) -> None:
    with pytest.raises(TransactionUsageError):
        db.current()


def test_whoever_inherits_a_threads_context_gets_an_error_and_never_the_connection(reliakit_dsn: str) -> None:
    async def script(db: Any) -> None:
        def use() -> None:
            for attempt in (
                lambda: tx.execute("SELECT 1"),
                lambda: tx.connection,
                db.current,
                lambda: db.execute("SELECT 1"),
                lambda: db.transaction().__enter__(),
                lambda: db.transaction(propagation=Propagation.NESTED).__enter__(),
            ):
                with pytest.raises(TransactionUsageError):
                    attempt()
            with db.transaction(propagation=Propagation.REQUIRES_NEW) as own:
                assert own.fetch_value("SELECT pg_backend_pid()") != pid
            refused.append(threading.current_thread().name)

        with db.transaction() as tx:
            pid = tx.fetch_value("SELECT pg_backend_pid()")
            for name in ("plain", "again"):
                thread = threading.Thread(target=contextvars.copy_context().run, args=(use,), name=name)
                thread.start()
                thread.join()
            # In the same thread a copied context is as good as the original.
            assert contextvars.copy_context().run(db.current) is tx
            assert contextvars.copy_context().run(db.fetch_value, "SELECT pg_backend_pid()") == pid

    refused: list[str] = []
    play("threads", reliakit_dsn, script)
    assert refused == ["plain", "again"]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("colour", COLOURS)
def test_a_second_connection_that_can_never_come_is_refused_at_once(
    reliakit_dsn: str, colour: str, source: str
) -> None:
    async def new(tx: Any, db: Any) -> None:
        async with block(db, propagation=Propagation.REQUIRES_NEW):
            pytest.fail("there is one connection alone")

    async def script(db: Any) -> None:
        for outer in (Propagation.REQUIRED, Propagation.SUPPORTS):
            # Waiting would take the hour of its timeout.
            with pytest.raises(TransactionUsageError, match="max_size"):
                async with block(db, propagation=outer, timeout=3600) as tx:
                    await new(tx, db)
        with pytest.raises(TransactionUsageError, match="max_size"):
            await run(db, new, db)

    play(colour, reliakit_dsn, script, source, max_size=1)
