"""A measurement file being written: rows that survive a kill, and what is in the file already. Knows no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvplan.errors import KvplanError

SCHEMA_VERSION = 1

Point = dict[str, int | float | str | bool]
"""What tells one measured point from others of its op."""

Report = Callable[[str, int, int], None]
"""Told what is measured now, how many points are done and how many there are."""


def no_report(what: str, done: int, total: int) -> None:
    """Say nothing."""


def batches_path(path: Path) -> Path:
    """The file beside a measurement file that holds the batches of transformers: an engine of its own."""
    return path.with_name(f"{path.stem}.transformers.jsonl")


@dataclass(slots=True)
class Session:
    """One file of measurements being written: what is in it already and the machine it belongs to."""

    path: Path
    machine: dict[str, Any]
    """The first row: what was measured on, with which software."""
    done: set[str] = field(default_factory=set)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row and flush it to disk: an interrupted run keeps every finished point."""
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def open_session(path: Path, machine: dict[str, Any]) -> Session:
    """Open or continue a measurement file; a file of another machine is refused, a torn last line dropped."""
    session = Session(path, machine)
    try:
        rows = list(_rows(path)) if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise KvplanError(f"{path}: no measurement file that can be read ({_why(error)})") from None
    for row in rows:
        if row["op"] == "machine" and row.get("machine") != machine["machine"]:
            raise KvplanError(
                f"{path} holds measurements of {row.get('machine')!r}, this is {machine['machine']!r}; "
                "choose another file"
            )
        if "key" in row:
            session.done.add(row["key"])
    check_writable(path)
    if not rows:
        session.append(machine)
    return session


def check_writable(path: Path) -> None:
    """Raise now what would only show when minutes of measuring are to be written; folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("a").close()
        if new:
            path.unlink()
    except OSError as error:
        raise KvplanError(f"{path} cannot be written ({_why(error)}); choose another file") from None


def _why(error: OSError | UnicodeDecodeError) -> str:
    return getattr(error, "strerror", None) or "not text"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a measurement file. Only the last line may be torn (a run that was killed while writing)."""
    text = path.read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "op" not in row:
                raise KvplanError(f"{path}:{number}: not a measurement row (an object with an op)")
            yield row
        except json.JSONDecodeError as error:
            if number < len(lines) or text.endswith("\n"):
                raise KvplanError(f"{path}:{number}: not a JSON row ({error.msg})") from None
            path.write_text("".join(f"{kept}\n" for kept in lines[:-1]))
