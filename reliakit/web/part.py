"""What every part of the web stack has in common: settings checked at construction, and two thin wrappers.

```
part = BodyLimit(1_048_576)
app  = part.asgi(app)        or   app.add_middleware(BodyLimit(1_048_576).asgi)
app  = part.wsgi(app)        or   flask_app.wsgi_app = part.wsgi(flask_app.wsgi_app)
```

A part holds its settings and decides; `reliakit.web.asgi` and `reliakit.web.wsgi` carry the decisions out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from reliakit.web.request import ASGIApp

__all__ = ["Part"]


class Part:
    """One part of the stack, usable alone as well. One object serves any number of apps, threads and tasks."""

    __slots__ = ()

    def asgi(self, app: ASGIApp) -> ASGIApp:
        """Return the ASGI app behind this part; lifespan and websocket pass through unchanged."""
        # Imported here because the wrappers import every part.
        from reliakit.web.asgi import wrap  # noqa: PLC0415

        return wrap(app, self)

    def wsgi(self, app: WSGIApplication) -> WSGIApplication:
        """Return the WSGI app behind this part."""
        from reliakit.web.wsgi import wrap  # noqa: PLC0415

        return wrap(app, self)
