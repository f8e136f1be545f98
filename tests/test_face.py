"""The lazy face: what it offers, that its lists agree, and that it loads nothing before it is used."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import reliakit

TREE = ast.parse(Path(reliakit.__file__).read_text(encoding="utf-8"))
TYPED = Path(__file__).parent / "typing" / "api.py"
DOCS = Path(__file__).parents[1] / "docs"

HEAVY = (
    "asyncio",
    "flask",
    "jsonschema_rs",
    "prometheus_client",
    "psycopg",
    "psycopg_pool",
    "pythonjsonlogger",
    "redis",
    "starlette",
)


def _shown_to_type_checkers() -> dict[str, str]:
    (block,) = [
        node
        for node in TREE.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    assert not any(alias.asname for node in imports for alias in node.names)
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_the_three_lists_agree() -> None:
    assert _shown_to_type_checkers() == reliakit._HOMES
    assert set(reliakit.__all__) == set(reliakit._HOMES)
    assert len(reliakit.__all__) == len(set(reliakit.__all__))


@pytest.mark.parametrize("name", reliakit.__all__)
def test_every_public_name_is_what_its_home_calls_public(name: str) -> None:
    home = importlib.import_module(reliakit._HOMES[name])
    assert getattr(reliakit, name) is getattr(home, name)
    assert name in home.__all__


@pytest.mark.parametrize("name", reliakit.__all__)
def test_every_public_name_is_used_in_the_typing_tests(name: str) -> None:
    used = {node.id for node in ast.walk(ast.parse(TYPED.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)}
    assert name in used


def _shown_in_the_reference() -> set[str]:
    pages = [*DOCS.glob("reference/*.md"), DOCS / "events.md"]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    names: set[str] = set()
    for path in [line.removeprefix("::: ") for line in lines if line.startswith("::: ")]:
        if path.startswith(("reliakit.integrations.", "reliakit.testing")):
            continue  # slow to load, and not on the face
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:
            names.add(path.rpartition(".")[2])  # an object on its own
        else:
            # A page shows a module and not what its package exports under the same name.
            hidden = [name for name in module.__all__ if hasattr(module, "__path__") and _is_module(path, name)]
            names |= {*module.__all__} - {*hidden}
    return names


def _is_module(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None


def test_every_public_name_stands_in_the_reference() -> None:
    assert {*reliakit.__all__} - _shown_in_the_reference() == set()


def test_what_is_not_there_is_missed_as_usual() -> None:
    with pytest.raises(AttributeError, match=r"module 'reliakit' has no attribute 'Nonsense'"):
        reliakit.Nonsense  # type: ignore[attr-defined]  # noqa: B018 - what the test is about
    with pytest.raises(ImportError):
        exec("from reliakit import Nonsense")
    assert not hasattr(reliakit, "__wrapped__")


def test_everything_is_listed_before_it_is_loaded() -> None:
    assert set(reliakit.__all__) <= set(dir(reliakit))


def test_the_version_is_the_installed_one() -> None:
    declared = [
        node.value
        for node in TREE.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert [ast.literal_eval(value) for value in declared] == [reliakit.__version__]


def _loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh process has after the statement and not before."""
    program = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    # -I: neither the tests' folder nor PYTHON* variables, whose tools (coverage, for example) load much themselves.
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=50
    )
    return set(done.stdout.split())


def test_importing_reliakit_loads_the_face_alone() -> None:
    program = "import reliakit, sys; print(*sorted(name for name in sys.modules if name.startswith('reliakit.')))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout.split() == []
    assert _loaded_by("import reliakit").isdisjoint({*HEAVY, "logging", "dataclasses", "inspect"})


LIGHT = [
    "from reliakit import subscribe, Event",
    "from reliakit import classify, deadline, request_context, Backoff",
    *(["from reliakit import CircuitBreaker"] if "CircuitBreaker" in reliakit.__all__ else []),
    *(["from reliakit import RateLimiter"] if "RateLimiter" in reliakit.__all__ else []),
    *(["from reliakit import Schema"] if "Schema" in reliakit.__all__ else []),
]


@pytest.mark.parametrize("statement", LIGHT)
def test_a_light_name_loads_nothing_heavy(statement: str) -> None:
    assert _loaded_by(statement).isdisjoint(HEAVY)


def test_using_a_light_name_blocking_loads_nothing_heavy() -> None:
    statement = (
        "from reliakit import classify, deadline, checkpoint, remaining\n"
        "with deadline(5): checkpoint(); remaining()\n"
        "classify(ValueError())"
    )
    assert _loaded_by(statement).isdisjoint(HEAVY)
