"""Masking for Sentry: hooks that pass on events and breadcrumbs in which no secret is left.

```
sentry_sdk.init(
    before_send=before_send(masker),
    before_send_transaction=before_send(masker),
    before_send_log=before_send(masker),
    before_breadcrumb=before_breadcrumb(masker),
)
```
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reliakit.logs.masker import Masker, masker_or_default
from reliakit.logs.records import hidden_args
from reliakit.logs.scan import FAILED
from reliakit.logs.walk import Walk

__all__ = ["before_breadcrumb", "before_send"]

Hook = Callable[[Any, Any], Any]

# What Sentry needs to accept an event at all; its library makes these, not the application.
_ENVELOPE = frozenset(
    {
        *("event_id", "timestamp", "start_timestamp", "type", "level", "platform", "sdk", "modules"),
        *("release", "dist", "environment", "_meta"),
    }
)
_LISTS = ("values", "frames", "spans")


def before_send(masker: Masker | None = None) -> Hook:
    """Return a hook that masks whole events: errors, transactions and logs.

    Message and parameters, exceptions with the variables of their frames, request, user, tags, extra data, spans and
    breadcrumbs are masked; each frame, span and breadcrumb has a budget of its own. The event passed to the hook is
    not changed. The hook never raises: of an event that cannot be masked, only its id, time and level are sent.

    Args:
        masker: Masks the events; `Masker()` by default.

    Raises:
        ConfigurationError: `masker` is not a `Masker`.
    """
    chosen = masker_or_default(masker)

    def hook(event: Any, _hint: Any = None) -> Any:
        try:
            return {name: _part(name, part, chosen) for name, part in event.items()}
        except Exception:  # noqa: BLE001 - the event is reported without its content
            return _stand_in(event)

    return hook


def before_breadcrumb(masker: Masker | None = None) -> Hook:
    """Return a hook that masks one breadcrumb. It never raises, and drops a breadcrumb that cannot be masked.

    Args:
        masker: Masks the breadcrumbs; `Masker()` by default.

    Raises:
        ConfigurationError: `masker` is not a `Masker`.
    """
    chosen = masker_or_default(masker)

    def hook(crumb: Any, _hint: Any = None) -> Any:
        masked: Any = chosen.mask(crumb)
        return masked if type(masked) is dict else None  # pyright: ignore[reportUnknownVariableType]  # Sentry's own

    return hook


def _part(name: str, part: Any, masker: Masker) -> Any:
    """Return one of an event's parts without its secrets."""
    if name in _ENVELOPE:
        return part
    if name == "logentry" and isinstance(part, dict):
        part = _with_hidden_params({**part}, masker)
    return _piecewise(name, part, masker)


def _piecewise(name: str, part: Any, masker: Masker) -> Any:
    """Mask long lists item by item, so that the last frame of a long stack has a budget of its own."""
    if name in _LISTS and isinstance(part, list):
        pieces: list[Any] = [*part]
        return [_piecewise("", piece, masker) for piece in pieces]
    if isinstance(part, dict):
        fields: dict[str, Any] = {**part}
        apart: dict[str, Any] = {key: fields.pop(key) for key in (*_LISTS, "stacktrace") if key in fields}
        if apart:
            return {**masker.mask(fields), **{key: _piecewise(key, apart[key], masker) for key in apart}}
    named: dict[str, Any] = {name: part}
    return masker.mask(named)[name]


def _with_hidden_params(entry: dict[str, Any], masker: Masker) -> dict[str, Any]:
    """Hide the parameters that come right after a sensitive word of their message."""
    template, params = entry.get("message"), entry.get("params")
    if isinstance(template, str) and isinstance(params, list | tuple):
        entry["params"] = [*hidden_args(template, (*params,), Walk(masker, plain=False))]
    return entry


def _stand_in(event: Any) -> Any:
    """Return an event that only says that there was one."""
    if not isinstance(event, dict):
        return None
    known: dict[str, Any] = {**event}
    return {**{name: known[name] for name in _ENVELOPE if name in known}, "message": FAILED}
