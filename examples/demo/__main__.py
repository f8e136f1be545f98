"""`python -m examples.demo`: everything from an empty machine to a verdict, in half a minute."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from examples.demo.interrupt import Interrupt, InterruptedDemo, Output

_NEEDED = ("argon2", "fastapi", "flask", "httpx2", "jsonschema_rs", "jwt", "psycopg", "rich", "uvicorn", "waitress")


def main(arguments: list[str]) -> int:
    interrupt = Interrupt()
    interrupt.install()
    asked = _parsed(arguments)
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        return _cannot(f"{', '.join(missing)} not installed; pip install -e '.[demo]'")
    try:
        from psycopg import OperationalError

        from examples.demo.faults import SHORTEST_RUN
        from examples.demo.run import Options, run
        from examples.demo.screen import Screen
        from examples.demo.stage import StageError
        from reliakit import ConfigurationError
    except ImportError as error:
        # psycopg without a libpq says so when it is imported.
        return _cannot(f"{str(error).splitlines()[0]}; pip install -e '.[demo]'")
    options = Options(
        seconds=asked.seconds,
        with_faults=not asked.no_faults and asked.seconds >= SHORTEST_RUN,
        serve=asked.serve,
        logs=asked.logs,
        svg=asked.svg,
        seed=asked.seed,
    )
    try:
        with Screen(Output()) as screen:
            return run(options, screen, interrupt)
    except InterruptedDemo:
        return 0 if asked.serve else 130
    except (ConfigurationError, OSError, OperationalError) as error:
        # No PostgreSQL, none behind RELIAKIT_DSN, or a folder that cannot be written to.
        return _cannot(str(error).partition("\n")[0])
    except StageError as error:
        print(error, file=sys.stderr)
        return 1


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="start the services, print where they are, send no load")
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=15.0,
        metavar="N",
        help="how long the load lasts (15); nothing goes wrong in less than 4",
    )
    parser.add_argument("--no-faults", action="store_true", help="let nothing go wrong")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what the services write in this folder")
    parser.add_argument("--svg", type=_picture, metavar="FILE", help="save a picture of the screen")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="another seed makes other requests (1)")
    return parser.parse_args(arguments)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 1.0 <= seconds <= 3600.0:
        raise argparse.ArgumentTypeError("must be between 1 and 3600")
    return seconds


def _picture(text: str) -> Path:
    file = Path(text)
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file.parent} is no folder")
    return file


def _cannot(why: str) -> int:
    print(f"the demo cannot run: {why}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
