"""Lets an account log in again that too many failures have stopped: `python -m examples.auth.unlock EMAIL`.

It takes the settings of the service, which may be running, and answers the same whether the account exists or not.
"""

from __future__ import annotations

import sys

from examples.auth.app import one_spelling
from examples.auth.limits import login_guard, store_of
from examples.auth.settings import Settings
from reliakit import ConfigurationError


def main(email: str) -> int:
    try:
        settings = Settings.from_environment()
        with store_of(settings) as store:
            guard, account = login_guard(settings, store), one_spelling(email)
            before = guard.status(account=account)
            guard.reset(account=account)
            after = guard.status(account=account)
    except ConfigurationError as error:
        print(f"cannot unlock: {error}", file=sys.stderr)
        return 2
    if before.degraded or after.degraded:
        print("cannot unlock: the database does not answer", file=sys.stderr)
        return 2
    print(f"{before.failures} failed logins forgotten{', which had stopped the account' if before.stopped else ''}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m examples.auth.unlock EMAIL")
    sys.exit(main(sys.argv[1]))
