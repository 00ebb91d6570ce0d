"""A measurement file being written: rows that survive a kill, and what is in the file already. Knows no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvplan.calibrate.measurements import Row, read_rows
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import append_whole, write_whole

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
class MeasurementSession:
    """One file of measurements being written: what is in it already and the machine it belongs to."""

    path: Path
    machine: Row
    """The first row: what was measured on, with which software."""
    done: set[str] = field(default_factory=set)

    def append(self, row: Row) -> None:
        """Write one row and flush it to disk: an interrupted run keeps every finished point."""
        append_whole(self.path, json.dumps(row))

    def rows(self) -> list[Row]:
        """All rows of the file."""
        return list(read_rows(self.path))


def open_session(path: Path, machine: Row) -> MeasurementSession:
    """Open or continue a measurement file; a file of another machine is refused, a torn last line dropped."""
    session = MeasurementSession(path, machine)
    _drop_torn_line(path)
    rows = list(read_rows(path)) if path.exists() else []
    for row in rows:
        if row["op"] == "machine" and row.get("machine") != machine["machine"]:
            raise KvplanError(
                f"{path} holds measurements of {row.get('machine')!r}, this is {machine['machine']!r}; "
                "choose another file"
            )
        if "key" in row:
            session.done.add(str(row["key"]))
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
        raise KvplanError(f"{path} cannot be written ({error.strerror}); choose another file") from None


def _drop_torn_line(path: Path) -> None:
    """Take off a last line that a run killed while writing left unfinished; other people's files stay as they are."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    kept, _, torn = text.rpartition("\n")
    if not torn or not text.startswith('{"op": '):
        return
    try:
        json.loads(torn)
    except ValueError:
        write_whole(path, f"{kept}\n" if kept else "")
