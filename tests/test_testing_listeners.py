"""RecordingListener: remembers what components said."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from reliakit.core.events import Event
from reliakit.core.spine import Emitter, subscribe
from reliakit.testing import RecordingListener


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened(Event):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed(Event):
    pass


def test_it_hears_one_component_or_the_whole_process():
    own, everywhere = RecordingListener(), RecordingListener()
    with subscribe(everywhere):
        Emitter("door", listeners=(own,)).emit(Opened)
        Emitter("gate").emit(Closed)
    Emitter("gate").emit(Closed)
    assert [event.name for event in own] == ["door"]
    assert [event.name for event in everywhere.events] == ["door", "gate"]


def test_it_picks_by_class_and_its_subclasses_in_order():
    heard = RecordingListener()
    emitter = Emitter("door", listeners=(heard,))
    for kind in (Opened, Closed, Opened):
        emitter.emit(kind)
    assert [event.sequence for event in heard.of(Opened)] == [1, 3]
    assert [event.sequence for event in heard.of(Event)] == [1, 2, 3]
    heard.clear()
    assert heard.of(Event) == []
    assert len(heard) == 0


def test_an_empty_recorder_is_still_true():
    assert RecordingListener()


def test_it_loses_nothing_between_threads():
    heard = RecordingListener()
    emitter = Emitter("door", listeners=(heard,))
    threads = [threading.Thread(target=lambda: [emitter.emit(Opened) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event.sequence for event in heard) == list(range(1, 1601))
