"""The states of one guard against guessing, as the memory store keeps them: written all at once or not at all.

```
accounts   pairs   sources   devices        a shelf of each
     └───────┴────────┴─────────┴───── an attempt has a state on all four
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from reliakit.stores.attempts import Failures, States
from reliakit.stores.counters import Gcra
from reliakit.stores.protocol import FOREVER

if TYPE_CHECKING:
    from collections.abc import Callable

    from reliakit.stores.attempts import AttemptRules
    from reliakit.stores.shelf import Place, Shelf

__all__ = ["Ledger"]

# For a moment in the place of a state that is None: nothing of it counts at any time.
_NOTHING = Failures(0, 0, 0, -FOREVER)
_EMPTY = States(_NOTHING, _NOTHING, -FOREVER, _NOTHING)
_Places: TypeAlias = "tuple[Place | None, ...]"


class Ledger:
    """The states of one guard: accounts, pairs, sources, devices. Its store's lock is held around every call.

    Args:
        rules: The guard's rules.
        shelf: Makes a shelf, given its name, from which instant on a state may be forgotten, and its lifetime.
    """

    __slots__ = ("shelves",)

    def __init__(self, rules: AttemptRules, shelf: Callable[[str, Callable[[Any], int], int], Shelf]) -> None:
        self.shelves: tuple[Shelf, ...] = (
            shelf("accounts", _expiry, rules.keep),
            shelf("pairs", _expiry, rules.pair_keep),
            shelf("sources", Gcra(rules.source).full, rules.source.period),
            shelf("devices", _expiry, rules.device_keep),
        )

    def moves(self) -> tuple[int, ...]:
        """Return `Shelf.moves` of each, to be read before places are chosen."""
        return tuple([shelf.moves for shelf in self.shelves])

    def find(self, places: _Places) -> tuple[Any, ...]:
        """Return the states at these places; None for what is not there or not kept."""
        pairs = zip(self.shelves, places, strict=True)
        return tuple([None if place is None else shelf.find(place) for shelf, place in pairs])

    def live(self, found: tuple[Any, ...], now: int) -> States:
        """Return what still counts of these states."""
        pairs = zip(self.shelves, found, strict=True)
        return States(*[None if state is None or shelf.full(state) <= now else state for shelf, state in pairs])

    def put(self, places: _Places, found: tuple[Any, ...], after: States, moves: tuple[int, ...]) -> bool:
        """Write all states, or forget them, if all that were found still are there; return whether they are.

        So that no state has to be added or removed in that step, see `_swap`, each place is given one before, if only
        an empty one.
        """
        seats = tuple(zip(self.shelves, places, _EMPTY, strict=True))
        known = [empty if state is None else state for state, empty in zip(found, _EMPTY, strict=True)]
        states = [empty if state is None else state for state, empty in zip(after, _EMPTY, strict=True)]
        try:
            for (shelf, place, _), before, state, move in zip(seats, found, known, moves, strict=True):
                if place is not None and not shelf.put(place, before, state, move):
                    return False
            young: list[dict[Any, Any]] = [
                {None: state} if place is None else shelf.young
                for (shelf, place, _), state in zip(seats, known, strict=True)
            ]
            return _swap(young, places, known, states)
        finally:
            for shelf, place, empty in seats:
                if place is not None:
                    shelf.put(place, empty, None)


def _expiry(state: Failures) -> int:
    return state.expires


def _swap(young: list[dict[Any, Any]], places: _Places, known: list[Any], states: list[Any]) -> bool:
    """Write four states if all the known ones still are there; return whether they are.

    Whoever decides meanwhile finds all of them written or none, as nothing is called in between; see `Shelf`.
    """
    a, b, c, d = young
    i, j, k, m = places
    try:
        if a[i] is not known[0] or b[j] is not known[1] or c[k] is not known[2] or d[m] is not known[3]:
            return False
        a[i], b[j], c[k], d[m] = states
    except KeyError:  # a signal's handler or a finaliser has forgotten one
        return False
    return True
