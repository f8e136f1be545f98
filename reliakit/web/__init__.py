"""The web edge: the parts that stand between a server and an app, for ASGI and WSGI alike.

`reliakit.web.asgi.protect` and `reliakit.web.wsgi.protect` combine them in the one right order; each part can also be
used alone: `app = SecurityHeaders.api().asgi(app)`.
"""

from __future__ import annotations

from reliakit.web.body import BodyLimit
from reliakit.web.client_ip import client_ip
from reliakit.web.cors import Cors
from reliakit.web.headers import SecurityHeaders
from reliakit.web.observer import RequestObserver
from reliakit.web.problem import ProblemResponse, ProblemResponses, problem
from reliakit.web.rate_limit import RateLimitHeaders
from reliakit.web.timeout import RequestTimeout

__all__ = [
    "BodyLimit",
    "Cors",
    "ProblemResponse",
    "ProblemResponses",
    "RateLimitHeaders",
    "RequestObserver",
    "RequestTimeout",
    "SecurityHeaders",
    "client_ip",
    "problem",
]
