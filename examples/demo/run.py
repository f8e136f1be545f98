"""One run of the demo, from the empty machine to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2

from examples.demo import faults, figures, verdicts
from examples.demo.planted import Planted, scan
from examples.demo.stage import SERVICES, Stage
from examples.demo.traffic import Traffic
from reliakit import SYSTEM_CLOCK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from examples.demo.figures import Figures
    from examples.demo.interrupt import Interrupt
    from examples.demo.screen import Screen
    from examples.demo.verdicts import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for on the command line.

    Attributes:
        seconds: How long the load lasts.
        with_faults: Whether anything goes wrong; a run below four seconds is too short for it.
        serve: Keep the services running and send them no load.
        logs: Where the services' logs are kept; None for a folder that is removed at the end.
        svg: Where a picture of the screen goes.
        seed: Makes two runs send the same requests, as far as time allows.
    """

    seconds: float = faults.FULL_RUN
    with_faults: bool = True
    serve: bool = False
    logs: Path | None = None
    svg: Path | None = None
    seed: int = 1


def run(options: Options, screen: Screen, interrupt: Interrupt) -> int:
    """Play the whole demo; return 0 when every objective is met, 1 when one is breached."""
    with Stage(interrupt, logs=options.logs, preferred_ports=options.serve) as stage:
        screen.tell(f"PostgreSQL {stage.postgres.version or 'of RELIAKIT_DSN'} and three services answer")
        for name in SERVICES:
            screen.tell(f"{name:<8} {stage.addresses[name]}")
        if options.serve:
            return serve(stage, screen, interrupt)
        rows = asyncio.run(unless_interrupted(perform(options, stage, screen), interrupt))
    screen.judge(rows)
    if options.svg is not None:
        screen.save(options.svg)
    return 1 if any(row.verdict == "breached" for row in rows) else 0


def serve(stage: Stage, screen: Screen, interrupt: Interrupt) -> int:
    """Keep the services running until told to stop."""
    screen.end_picture()
    screen.tell(
        f"""try: curl {stage.addresses["auth"]}/register --json '{{"email": "me@example.org", "password": "..."}}'"""
    )
    screen.tell("Ctrl-C ends it and removes everything")
    while True:
        interrupt.wait(1.0)
        stage.must_run()


async def unless_interrupted(work: Coroutine[Any, Any, list[Row]], interrupt: Interrupt) -> list[Row]:
    """Do the work, or give it up as soon as the demo is told to stop."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(interrupt.cancel_when_told(task))
    try:
        return await task
    except asyncio.CancelledError:
        interrupt.check()
        raise
    finally:
        watch.cancel()


async def perform(options: Options, stage: Stage, screen: Screen) -> list[Row]:
    """Send the load, let things go wrong meanwhile, and judge what came of it."""
    planted = Planted(random.Random(options.seed))
    planted.keep("signing key", stage.jwt_secret)
    limits = httpx2.Limits(max_connections=64)
    async with httpx2.AsyncClient(timeout=10.0, limits=limits) as client:
        traffic = Traffic(client, stage.urls, planted, random.Random(options.seed))
        await traffic.prepare()
        screen.tell(f"{traffic.people} people hired and put on projects; the load begins")
        seconds = await load(options, stage, screen, traffic, client)
        settled_after = await settle(traffic.all_is_well)
        await settle(partial(everything_is_delivered, stage))
        read = await figures.read(client, stage.urls)
        screen.show(traffic.tally, read, seconds, seconds)
        screen.tell("the load has ended; looking at what it left")
        truth = await asyncio.to_thread(figures.look, stage.dsns, traffic.tally, traffic.granted)
    exit_codes = await asyncio.to_thread(stage.stop_services)
    return verdicts.judge(
        verdicts.Run(
            tally=traffic.tally,
            figures=read,
            truth=truth,
            planted=planted,
            scan=await asyncio.to_thread(scan, planted, stage.folder),
            people=traffic.people,
            seconds=seconds,
            with_faults=options.with_faults,
            settled_after=settled_after,
            exit_codes=exit_codes,
            sessions_left=await asyncio.to_thread(figures.sessions, stage.dsns),
        )
    )


async def load(options: Options, stage: Stage, screen: Screen, traffic: Traffic, client: httpx2.AsyncClient) -> float:
    """Let everybody act for so many seconds, or until the last fault is over; show it, and return how long it was."""
    began = SYSTEM_CLOCK.monotonic()
    shown: Figures | None = None
    plays: asyncio.Task[None] | None = None

    def has_opened() -> bool:
        return shown is not None and shown.total("reliakit_circuit_breaker_transitions_total", to="open") > 0

    async def watch() -> None:
        nonlocal shown
        while True:
            with contextlib.suppress(httpx2.HTTPError):  # a service in trouble has no figures for now
                shown = await figures.read(client, stage.urls)
            await SYSTEM_CLOCK.asleep(1.0)

    async with asyncio.TaskGroup() as group:
        for act in traffic.actors():
            group.create_task(act())
        watcher = group.create_task(watch())
        if options.with_faults:
            plan = faults.plan(stage, options.seconds, has_opened)
            plays = group.create_task(faults.play(plan, options.seconds, screen.tell))
        while (elapsed := SYSTEM_CLOCK.monotonic() - began) < options.seconds or (plays and not plays.done()):
            screen.show(traffic.tally, shown, min(elapsed, options.seconds), options.seconds)
            await SYSTEM_CLOCK.asleep(0.1)
        # Nobody is cut off in the middle of a write: whoever waits for an answer gets it.
        traffic.end()
        watcher.cancel()
    return elapsed


async def everything_is_delivered(stage: Stage) -> bool:
    """Tell whether no message waits in the project service's outbox."""
    return await asyncio.to_thread(figures.undelivered, stage.dsns) == 0


async def settle(is_done: Callable[[], Awaitable[bool]], patience: float = 8.0) -> float | None:
    """Wait until something is done; return how long that took, None when it took too long."""
    began = SYSTEM_CLOCK.monotonic()
    while SYSTEM_CLOCK.monotonic() < began + patience:
        if await is_done():
            return SYSTEM_CLOCK.monotonic() - began
        await SYSTEM_CLOCK.asleep(0.1)
    return None
