"""The test matrix: `nox` runs the suite on every supported Python.

`nox --error-on-missing-interpreters` is what CI runs, so that an untested Python is an error and not a skip.
"""

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.sessions = ["tests"]

PYTHONS = ["3.11", "3.12", "3.13"]


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the suite, as the README does."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python="3.12")
def coverage(session: nox.Session) -> None:
    """Run the suite under branch coverage, in one process, and hold it to the floor."""
    session.install("-e", ".[test]")
    session.run("coverage", "run", "-m", "pytest", "-n=0", *session.posargs)
    session.run("coverage", "report", "--skip-covered", "--fail-under=95")
