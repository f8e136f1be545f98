"""Taking connections and giving them back: slots, age, and where a connection comes from.

With a conninfo, the database keeps connections of its own, one per slot, each opened by the caller that needs it and
within its time. With a pool of psycopg_pool, it borrows for each checkout. The queue is its own in both cases.

Longer than other modules, because what is done with a slot and what is reported of it have to happen in one order: a
figure is true only between two steps of the same checkout.
"""

from __future__ import annotations

import itertools
import secrets
from typing import TYPE_CHECKING, Any

import psycopg

from reliakit.core.errors import TransactionTimeoutError, TransactionUsageError
from reliakit.core.events import (
    CheckoutOverdue,
    ConnectionClosed,
    ConnectionLeaked,
    ConnectionOpened,
    PoolChanged,
    PoolReturned,
    PoolWaited,
)
from reliakit.core.fork import tell_after_fork
from reliakit.core.spine import watch
from reliakit.database.audience import Audience, Reader, audience_of
from reliakit.database.gate import Gate, Lease, Slot
from reliakit.database.places import owner_here, place_here
from reliakit.database.settings import DatabaseStats

if TYPE_CHECKING:
    from reliakit.core.clock import Clock
    from reliakit.core.spine import Emitter
    from reliakit.database.session import Session
    from reliakit.database.source import Source
    from reliakit.database.work import Work

__all__ = ["Checkouts"]

_RARE = frozenset({ConnectionOpened, ConnectionClosed})


class Checkouts:
    """The connections of one database.

    Args:
        source: Where they come from.
        size: The most connections there may be.
        keep: How many stay open however long nobody uses them.
        max_lifetime: Seconds after which a connection is replaced.
        max_idle: Seconds after which an unused connection is closed.
        leak_after: Seconds after which a checkout is reported.
        service: The service it belongs to.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        size: int,
        keep: int,
        max_lifetime: float,
        max_idle: float,
        leak_after: float,
        clock: Clock,
        emitter: Emitter,
        service: str | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self.size = size
        self._keep = keep
        self.max_lifetime = max_lifetime
        self._max_idle = max_idle
        self.leak_after = leak_after
        self._clock = clock
        self.emitter = emitter
        self._lost = 0
        self._identity = secrets.token_hex(8)
        self._revisions = itertools.count(1)
        self.gate: Gate = Gate(name, size, self._revisions)
        self._used = False
        self.is_parents: bool = False  # whether this is a child of the process that used it
        self.next_sweep: float = 0.0
        self._service = service
        self._read = Reader(self._identity, service, self, self._revisions, clock).read
        self.audience: Audience = Audience(emitter)
        tell_after_fork(self, "disown")
        watch(self)

    def listeners_changed(self) -> None:
        """Find out who listens now; see `reliakit.core.spine.watch`."""
        while True:
            listeners = self.emitter.listeners
            is_seen = self._used and not self.gate.closed
            self.audience = audience_of(self.emitter, self._service, self._read if is_seen else None)
            if self.emitter.listeners is listeners:  # if not, another thread has newer listeners and does it
                return

    async def take(self, work: Work, until: float, seconds: float) -> None:
        """Give this work a connection within its time. Raises as `claim` and `fetch` do."""
        if not self.claim(work, until, seconds):
            await self.fetch(work, until, seconds)

    def claim(self, work: Work, until: float, seconds: float) -> bool:
        """Give this work a free open connection and return True; else return False, and `fetch` must follow.

        Raises:
            TransactionTimeoutError: No time is left.
            TransactionUsageError: The database is closed, the process was forked, or the wait could never end.
        """
        gate = self._usable()
        attempt = work.attempt
        place = attempt.place or place_here(attempt.fn, 3)  # 3 frames up: whoever calls this is our own code
        # From here on the lease belongs to the work: giving the work back always gives the slot back.
        lease = work.lease = attempt.lease = Lease(gate, work.owner, work.asked, place)
        if until <= work.asked:
            raise self._no_time(seconds)
        if not gate.enter(lease, self.source.io.bell):
            return False
        slot = lease.slot
        assert slot is not None
        session = slot.session
        if session is None or session.broken or work.asked >= self.next_sweep:
            return False
        if work.asked - session.born > self.max_lifetime:
            return False
        session.reset(until, seconds)
        work.session = session
        self.tell_granted(work)
        return True

    async def fetch(self, work: Work, until: float, seconds: float) -> None:
        """Wait in the queue, open a connection, or deal with old ones: what kept `claim` from giving one at once.

        Raises:
            TransactionTimeoutError: None came free in time.
            psycopg.OperationalError: The server cannot be reached.
        """
        lease = work.lease
        assert lease is not None
        if not lease.holds:
            await self._queue(self.gate, lease, work, until, seconds)
        self.tell_granted(work)
        slot = lease.slot
        assert slot is not None
        session = slot.session
        now = slot.since = self._clock.monotonic()
        if session is not None and (session.broken or now - session.born > self.max_lifetime):
            slot.session = None
            await self._discard(session, "broken" if session.broken else "lifetime")
            session = None
        if session is None:
            session = await self._obtain(slot, until, seconds)
        session.reset(until, seconds)
        work.session = session
        if now >= self.next_sweep:
            await self._look_after(now)

    def tell_granted(self, work: Work) -> None:
        """Report that the work has its connection."""
        work.timed = True
        self._tell_waited(work, granted=True)

    def _tell_waited(self, work: Work, *, granted: bool) -> None:
        audience = self.audience
        audience.waited(work.waited, granted=granted)
        self._tell_to(audience.emitter, PoolWaited, wait=work.waited, granted=granted)

    async def _queue(self, gate: Gate, lease: Lease, work: Work, until: float, seconds: float) -> None:
        self._tell(PoolChanged)
        try:
            while not gate.granted(lease):
                left = until - self._clock.monotonic()
                if left <= 0:
                    work.waited = self._clock.monotonic() - work.asked
                    self._report_overdue()
                    refusal = self._no_connection(seconds)
                    lease.leave()
                    self._tell_waited(work, granted=False)
                    raise refusal
                await self.source.io.park(lease.bell, left)
        finally:
            work.waited = self._clock.monotonic() - work.asked

    async def replace(self, work: Work, within: float) -> None:
        """Give the work another connection, by `within`, for the one that proved dead."""
        dead, lease = work.session, work.lease
        assert dead is not None
        assert lease is not None
        assert lease.slot is not None
        until, seconds = dead.until, dead.seconds
        work.session = lease.slot.session = None
        await self._discard(dead, "broken")
        session = await self._obtain(lease.slot, within, seconds)
        session.reset(until, seconds)
        work.session = session

    async def _obtain(self, slot: Slot, until: float, seconds: float) -> Session:
        try:
            return await self._connect(slot, until)
        except psycopg.OperationalError as error:
            if self._clock.monotonic() < until:
                raise
            raise self._not_connected(seconds) from error

    async def _connect(self, slot: Slot, until: float) -> Session:
        began = self._clock.monotonic()
        session = await self.source.obtain(slot, max(0.001, until - began), self._clock, self.name)
        if session.owned:
            self._tell(ConnectionOpened, duration=self._clock.monotonic() - began)
        return session

    async def _discard(self, session: Session, reason: str) -> None:
        """Close a connection whose session is no longer in a slot."""
        await self.source.dispose(session)
        self._tell(ConnectionClosed, reason=reason, age=self._age_of(session))

    def _age_of(self, session: Session) -> float | None:
        return self._clock.monotonic() - session.born if session.owned else None

    def _tell(self, kind: type[PoolChanged], **fields: Any) -> None:
        # Rare events go to listeners with a meter, too.
        self._tell_to(self.emitter if kind in _RARE else self.audience.emitter, kind, **fields)

    def _tell_to(self, emitter: Emitter, kind: type[PoolChanged], **fields: Any) -> None:
        """Emit an event with the current figures, if anybody listens for it, and tell the watchers."""
        if emitter.hears(kind):
            found = self.gate.figures()
            emitter.emit(
                kind,
                pool=self._identity,
                revision=found.revision,
                max_size=0 if self.gate.closed else self.size,
                size=found.size,
                in_use=found.in_use,
                waiting=found.waiting,
                oldest_checkout=None if found.oldest is None else self._clock.monotonic() - found.oldest,
                **fields,
            )
        self.audience.changed()  # last: a listener may have shown the event's figures, which need not be the latest

    def put_back(self, work: Work) -> bool:
        """Keep one of our own connections for the next work; return False if `give_back` must handle it."""
        session, lease = work.session, work.lease
        if session is None or lease is None:
            return False
        slot = lease.slot
        if slot is None or lease.closed or not session.owned or not session.reusable:
            return False
        self.note_return(work, session, lease)
        lease.leave()
        work.session = None
        work.lease = work.attempt.lease = None
        self.tell_returned(work, session)
        return True

    def tell_returned(self, work: Work, session: Session) -> None:
        """Report that the work's connection is back."""
        audience, held = self.audience, work.held or 0.0
        if audience.is_empty:
            return
        if not work.timed:
            audience.waited(work.waited, granted=True)
        audience.returned(held)
        self.tell_back(audience.emitter, session, held)

    def tell_back(self, emitter: Emitter, session: Session, held: float) -> None:
        """Report that a connection is back, by the event only."""
        self._tell_to(emitter, PoolReturned, used=held, age=self._age_of(session))

    async def give_back(self, work: Work) -> None:
        """Take the work's connection back, in whatever state. If interrupted, call it again to go on from there."""
        session, lease = work.session, work.lease
        if lease is None:
            return
        slot = lease.slot
        if session is not None and slot is not None:
            self.note_return(work, session, lease)
            if not (session.owned and session.reusable) or lease.closed:
                reason = "broken" if not session.reusable else "closed" if session.owned else None
                await self._dispose(session)
                slot.session = None
                if reason is not None:
                    self._tell(ConnectionClosed, reason=reason, age=self._age_of(session))
        lease.leave()
        work.session = None
        work.lease = work.attempt.lease = None
        if session is None:
            self._tell(PoolChanged)  # the work waited in vain, or could not connect
        else:
            self.tell_returned(work, session)

    async def _dispose(self, session: Session) -> None:
        try:
            await self.source.dispose(session)
        except Exception as error:  # noqa: BLE001 - the pool refused its own connection; the outcome stands
            self._lost += 1
            self.emitter.emit(ConnectionLeaked, reason=f"the pool did not take it back: {error!r}")

    def _usable(self) -> Gate:
        if self.is_parents:
            raise TransactionUsageError(
                f"[{self.name}] this process was forked after the database was opened, and connections cannot be "
                "shared with the parent: open the database after the fork, or close() and open() it in the child",
                name=self.name,
            )
        if not self._used:
            self._used = True
            self.listeners_changed()
        return self.gate

    async def open(self, seconds: float) -> None:
        """Open the connections that are to be kept. A closed database is opened again; an open one stays as it is."""
        if self.gate.closed:
            self.gate = Gate(self.name, self.size, self._revisions)
            self._used = self.is_parents = False
        gate = self._usable()
        await self.source.open()
        until = self._clock.monotonic() + seconds
        leases: list[Lease] = []
        try:
            for _ in range(self._keep if self.source.pool is None else 0):
                lease = Lease(gate, owner_here(), self._clock.monotonic(), place_here())
                leases.append(lease)
                if not gate.enter(lease, self.source.io.bell):
                    break  # all other slots are in use
                assert lease.slot is not None
                if lease.slot.session is None:
                    # It may be idle for long before its first use, so it is replaced if it is dead by then.
                    (await self._connect(lease.slot, until)).fresh = False
        finally:
            for lease in leases:
                lease.leave()
            self.audience.changed()

    def held(self) -> list[Slot]:
        """Return the slots that are in use, the oldest checkout first."""
        return self.gate.held()

    @property
    def closed(self) -> bool:
        """Whether new checkouts are refused."""
        return self.gate.closed

    async def close(self) -> None:
        """Refuse new checkouts and close unused connections; those in use are closed when they come back."""
        if self.is_parents:
            # The connections are the parent's, and a thread of the parent may have held the gate's lock at the fork.
            self.gate = Gate(self.name, self.size, self._revisions)
            self.gate.closed = True
            return
        for session in self.gate.close():
            await self._discard(session, "closed")
        await self.source.close()
        self._tell(PoolChanged)

    def over(self, source: Source, *, name: str, size: int) -> Checkouts:
        """Return checkouts with the same settings and another source, for test kits."""
        return Checkouts(
            source,
            name=name,
            size=size,
            keep=0,
            max_lifetime=self.max_lifetime,
            max_idle=self._max_idle,
            leak_after=self.leak_after,
            clock=self._clock,
            emitter=self.emitter,
            service=self._service,
        )

    def disown(self) -> None:
        """Leave all connections to the parent process; called in its child."""
        self.is_parents = self._used
        self.gate.disown()

    async def _look_after(self, now: float) -> None:
        """Close connections that were idle for too long, and report checkouts that were held for too long."""
        self.next_sweep = now + min(1.0, self.leak_after / 2)
        self._report_overdue()
        if self.source.pool is None:
            for session in self.gate.expire(lambda idle: now - idle.idle_since > self._max_idle, self._keep):
                await self._discard(session, "idle")

    def _report_overdue(self) -> list[Slot]:
        held = self.gate.held()
        now = self._clock.monotonic()
        for slot in held:
            age = now - slot.since
            if age <= self.leak_after:
                break
            if not slot.reported:
                slot.reported = True
                self.emitter.emit(CheckoutOverdue, age=age, line=slot.line)
        return held

    def note_return(self, work: Work, session: Session, lease: Lease) -> None:
        """Record how long a connection that comes back now was held."""
        slot = lease.slot
        assert slot is not None
        session.fresh = False
        now = session.idle_since = self._clock.monotonic()
        held = work.held = now - slot.since
        if held > self.leak_after and not slot.reported:
            slot.reported = True
            self.emitter.emit(CheckoutOverdue, age=held, line=slot.line)

    def stats(self) -> DatabaseStats:
        """Return how many connections are open, in use, waited for and leaked. O(max_size)."""
        held = self._report_overdue()
        now = self._clock.monotonic()
        dead = [slot for slot in held if slot.abandoned]
        for slot in dead:
            if not slot.told:
                slot.told = True
                self.emitter.emit(ConnectionLeaked, reason=f"taken at {slot.line} by {slot.owner!r}, which has ended")
        return DatabaseStats(
            size=self.gate.size,
            in_use=len(held),
            waiting=self.gate.waiting,
            leaked=len(dead) + self._lost,
            oldest_checkout=now - held[0].since if held else None,
            max_size=self.size,
        )

    def _no_time(self, seconds: float) -> TransactionTimeoutError:
        return TransactionTimeoutError(
            f"[{self.name}] no time is left to begin a transaction", name=self.name, seconds=seconds
        )

    def _not_connected(self, seconds: float) -> TransactionTimeoutError:
        origin = "the server" if self.source.pool is None else "its pool"
        return TransactionTimeoutError(
            f"[{self.name}] {origin} gave no connection in {seconds:g} s", name=self.name, seconds=seconds
        )

    def _no_connection(self, seconds: float) -> TransactionTimeoutError:
        held = self.gate.held()
        oldest = f", the oldest taken at {held[0].line}" if held else ""
        return TransactionTimeoutError(
            f"[{self.name}] no connection came free in {seconds:g} s; {len(held)} of {self.size} are in use{oldest}",
            name=self.name,
            seconds=seconds,
        )
