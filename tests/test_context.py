"""Who asked, and under which id."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
import re
import threading
from collections.abc import Iterator
from dataclasses import asdict

import pytest

from reliakit import SYSTEM_CLOCK, ConfigurationError, RequestContext, current_request, request_context
from reliakit.core.context import current_priority


def test_outside_of_a_request_there_is_none() -> None:
    assert current_request() is None


def test_a_block_knows_its_request() -> None:
    with request_context(request_id="a1", principal="7", trace_id="f" * 32, tenant="x") as request:
        assert current_request() is request
        assert request == RequestContext("a1", "7", "f" * 32, {"tenant": "x"})
    assert current_request() is None


def test_a_request_without_an_id_gets_one_of_its_own() -> None:
    with request_context() as first:
        pass
    with request_context(request_id="") as second:
        pass
    assert re.fullmatch(r"[0-9a-f]{32}", first.request_id)
    assert re.fullmatch(r"[0-9a-f]{32}", second.request_id)
    assert first.request_id != second.request_id


def test_an_inner_block_inherits_what_it_leaves_out_and_wins_where_it_does_not() -> None:
    with request_context(request_id="a1", principal="7", trace_id="t", tenant="x", shard=1):
        with request_context(tenant="y") as inner:
            assert inner == RequestContext("a1", "7", "t", {"tenant": "y", "shard": 1})
        with request_context(request_id="b2", principal="8") as inner:
            assert inner == RequestContext("b2", "8", "t", {"tenant": "x", "shard": 1})
        outer = current_request()
        assert outer is not None
        assert outer.fields == {"tenant": "x", "shard": 1}


def test_any_word_may_be_a_field() -> None:
    with request_context(**{"self": 1, "fields": 2, "class": 3}) as request:
        assert request.fields == {"self": 1, "fields": 2, "class": 3}


def test_the_fields_cannot_be_changed_from_outside() -> None:
    with request_context(tenant="x") as request, pytest.raises(TypeError):
        request.fields["tenant"] = "y"  # type: ignore[index]  # what the test is about


def test_a_request_can_be_copied_and_sent_to_another_process() -> None:
    with request_context(request_id="a1", principal="7", trace_id="f" * 32, tenant=["x"]) as request:
        assert copy.deepcopy(request) == request
        assert pickle.loads(pickle.dumps(request)) == request
        assert asdict(copy.copy(request))["fields"] == {"tenant": ["x"]}


def test_an_error_in_the_block_ends_the_request_and_passes() -> None:
    with pytest.raises(KeyError), request_context(request_id="a1"):
        raise KeyError
    assert current_request() is None


def test_one_object_may_be_entered_again_and_inside_itself() -> None:
    block = request_context(request_id="a1", n=1)
    with block as first, block as second:
        assert first == second
    assert current_request() is None
    with block:
        assert current_request() == first


@pytest.mark.anyio
async def test_tasks_inherit_their_request_and_keep_it() -> None:
    go_on = asyncio.Event()

    async def child() -> str | None:
        await go_on.wait()
        request = current_request()
        return request.request_id if request else None

    with request_context(request_id="a1"):
        task = asyncio.create_task(child())
        await SYSTEM_CLOCK.asleep(0)
    go_on.set()
    assert await task == "a1"


@pytest.mark.anyio
async def test_tasks_do_not_see_each_other_s_requests() -> None:
    async def serve(request_id: str) -> str | None:
        with request_context(request_id=request_id):
            await SYSTEM_CLOCK.asleep(0)
            request = current_request()
            return request.request_id if request else None

    ids = [str(n) for n in range(20)]
    assert await asyncio.gather(*map(serve, ids)) == ids
    assert current_request() is None


@pytest.mark.anyio
async def test_a_worker_thread_of_asyncio_inherits_and_a_bare_thread_does_not() -> None:
    found: list[RequestContext | None] = []
    with request_context(request_id="a1") as request:
        assert await asyncio.to_thread(current_request) is request
        thread = threading.Thread(target=lambda: found.append(current_request()))
        thread.start()
        await asyncio.to_thread(thread.join)
    assert found == [None]


def _rows() -> Iterator[int]:
    with request_context(request_id="rows"):
        yield 1


def test_a_generator_closed_in_another_request_leaves_that_request_alone() -> None:
    rows = _rows()
    contextvars.copy_context().run(next, rows)
    with request_context(request_id="mine") as mine:
        rows.close()
        assert current_request() is mine


def test_a_generator_closed_in_a_copy_of_its_context_ends_its_request_there() -> None:
    rows = _rows()
    began = contextvars.copy_context()
    began.run(next, rows)

    def close_in_copy() -> RequestContext | None:
        rows.close()
        return current_request()

    assert began.copy().run(close_in_copy) is None


def test_a_priority_is_inherited_and_may_be_lowered_and_raised() -> None:
    assert current_priority() == "default"
    with request_context(priority="sheddable") as outer:
        assert outer.priority == current_priority() == "sheddable"
        with request_context(tenant="x"):
            assert current_priority() == "sheddable"
            with request_context(priority="critical"):
                assert current_priority() == "critical"
        assert copy.deepcopy(outer) == pickle.loads(pickle.dumps(outer)) == outer
    with request_context() as plain:
        assert plain.priority == "default"


def test_an_unknown_priority_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="priority must be one of 'critical', 'default', 'sheddable'"):
        request_context(priority="high")  # type: ignore[arg-type]  # what the test is about
