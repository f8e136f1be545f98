"""What becomes of transactions when the server, its backends or this process are replaced under them."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from database_drivers import SOURCES

FORKED = """
    import gc, os, sys, time
    from reliakit.core.errors import TransactionUsageError
    from reliakit.database import Database, Propagation
    from psycopg_pool import ConnectionPool

    dsn, source, way = sys.argv[1:]
    pool = ConnectionPool(dsn, min_size=1, max_size=2, open=True) if source == "a pool" else None
    db = Database(pool or dsn, max_size=2)

    def refused(use):
        try:
            use()
        except TransactionUsageError as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("not refused")

    def block(**options):
        with db.transaction(**options):
            pass

    def child(tx):
        refused(lambda: tx.execute("SELECT 1"))
        refused(lambda: tx.fetch_value("SELECT 1"))
        refused(lambda: tx.connection)
        refused(db.current)
        refused(lambda: db.execute("SELECT 1"))
        refused(block)
        refused(lambda: block(propagation=Propagation.NESTED))
        refused(lambda: block(propagation=Propagation.REQUIRES_NEW))
        db.stats()

    is_child = False
    try:
        with db.transaction(operation="parent") as tx:
            pid = tx.fetch_value("SELECT pg_backend_pid()")
            tx.execute("CREATE TABLE item AS SELECT 1 AS id")
            if os.fork() == 0:
                is_child = True
                child(tx)
                if way == "an error":
                    raise SystemExit(0)
                if way == "a swallowed error":
                    raise LookupError
            else:
                assert os.wait()[1] == 0
                assert tx.fetch_value("SELECT pg_backend_pid()") == pid
    except (LookupError, TransactionUsageError):
        assert is_child
        refused(lambda: db.execute("SELECT 1"))
        if source != "a pool":
            db.close()
            with db.open():
                assert db.fetch_value("SELECT pg_backend_pid()") != pid
        del tx
        gc.collect()
        sys.exit(0)
    assert not is_child
    assert db.fetch_value("SELECT id FROM item") == 1
    with db.transaction(), db.transaction(propagation=Propagation.REQUIRES_NEW):
        assert db.stats().in_use == 2
    assert db.stats().leaked == 0
    print("the parent is unharmed")
"""


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", ["an error", "a swallowed error", "the end"])
def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(reliakit_dsn: str, source: str, way: str) -> None:
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(FORKED)]
    done = subprocess.run([*program, reliakit_dsn, source, way], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the parent is unharmed\n", "")
