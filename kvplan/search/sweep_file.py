"""The file of a sweep: rows are appended as points finish, and found again after a kill.

CSV and JSONL are appended to directly. Parquet cannot be: its rows wait in a JSONL file beside it. At the end the
file is written anew in the order of the points, so that how a sweep ran leaves no trace in it. A torn last line, as a
kill leaves it, is dropped; so are rows whose point failed for want of a worker.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvplan.errors import KvplanError
from kvplan.search.point_row import COUNTS, FIGURES, TEXTS, Row

SUFFIXES = (".csv", ".jsonl", ".parquet")
HASH = "point"
"""The column that tells points apart."""


@dataclass(slots=True)
class SweepFile:
    """One sweep's rows on disk."""

    path: Path
    keys: tuple[str, ...]
    """The columns of the swept keys."""
    found: dict[str, Row] = field(default_factory=dict)
    """Finished rows by their point's hash."""
    _file: Any = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Hash, keys, figures."""
        return (HASH, *self.keys, *FIGURES)

    @property
    def journal(self) -> Path:
        """Where rows are appended: the file itself, or the one beside a Parquet file."""
        return self.path.with_name(self.path.name + ".rows.jsonl") if self._is_parquet else self.path

    @property
    def _is_parquet(self) -> bool:
        return self.path.suffix == ".parquet"

    def open(self) -> None:
        """Read what is there and get ready to append. Raises KvplanError for a file that is not this sweep's."""
        if self.path.suffix not in SUFFIXES:
            raise KvplanError(f"-o {self.path}: the name must end in {', '.join(SUFFIXES)}")
        if not self.path.parent.is_dir():
            raise KvplanError(f"-o {self.path}: there is no folder {self.path.parent}")
        try:
            rows = _read_parquet(self.path) if self._is_parquet and self.path.exists() else []
            rows += self._read_journal() if self.journal.exists() else []
            for row in rows:
                self._check(row)
                self.found[row[HASH]] = row
            self._rewrite(self.journal, list(self.found.values()))
            self._file = self.journal.open("a", encoding="utf-8", newline="")
        except (OSError, UnicodeDecodeError) as error:
            raise self._trouble(error) from None

    def _check(self, row: Row) -> None:
        if tuple(row) != self.columns:
            other = [name for name in row if name not in FIGURES and name != HASH]
            raise KvplanError(
                f"-o {self.path}: holds a sweep over {', '.join(other) or 'something else'}, not over "
                f"{', '.join(self.keys)}; choose another file, or remove it"
            )

    def _read_journal(self) -> list[Row]:
        """The whole lines; a torn last one is dropped."""
        text = self.journal.read_text(encoding="utf-8", errors="replace")
        if self.journal.suffix == ".jsonl":
            return [row for line in text.split("\n") if isinstance(row := _line(line), dict)]
        whole = text[: text.rfind("\n") + 1]
        header, *lines = list(csv.reader(io.StringIO(whole))) or [[]]
        if text and tuple(header) != self.columns:
            self._check(dict.fromkeys(header or text[:40].split(",")))
        return [
            dict(zip(header, map(_value, header, line), strict=True))
            for line in lines
            if len(line) == len(header)
        ]

    def add(self, row: Row) -> None:
        """Append one finished row, whole and at once. Raises KvplanError when the disk does not take it."""
        try:
            self._file.write(self._text(row, self.journal))
            self._file.flush()
        except OSError as error:
            raise self._trouble(error) from None
        self.found[row[HASH]] = row

    def finish(self, order: Sequence[str]) -> None:
        """Write all rows in the order of their points, then those of other points that the file held before."""
        rows = {h: self.found[h] for h in order if h in self.found}
        rows |= {h: row for h, row in self.found.items() if h not in rows}
        try:
            self.close()
            if self._is_parquet:
                _write_parquet(self.path, list(rows.values()), self.columns)
                self.journal.unlink()
            else:
                self._rewrite(self.path, list(rows.values()))
        except OSError as error:
            raise self._trouble(error) from None

    def close(self) -> None:
        """Leave the rows as they are."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                raise self._trouble(error) from None
            finally:
                self._file = None

    def _rewrite(self, path: Path, rows: list[Row]) -> None:
        """Replace a file as a whole: a kill leaves the old one or the new one."""
        beside = path.with_name(path.name + ".new")
        with beside.open("w", encoding="utf-8", newline="") as file:
            if path.suffix == ".csv":
                csv.writer(file, lineterminator="\n").writerow(self.columns)
            file.writelines(self._text(row, path) for row in rows)
        os.replace(beside, path)

    def _text(self, row: Row, path: Path) -> str:
        if path.suffix == ".jsonl":
            return json.dumps(row, default=str) + "\n"
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(["" if v is None else v for v in row.values()])
        return line.getvalue()

    def _trouble(self, error: Exception) -> KvplanError:
        why = getattr(error, "strerror", None) or type(error).__name__
        kept = f"; {len(self.found):,} finished rows are kept" if self.found else ""
        return KvplanError(f"-o {self.path}: {why}{kept}; run the same command again to go on")


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _value(column: str, text: str) -> Any:
    """A cell of a CSV as it was before it was written; keys are filled in from the point later."""
    if column in TEXTS or column not in FIGURES:
        return text
    if text == "":
        return None
    if column in COUNTS:
        return int(text)
    return text == "True" if column == "slo_met" else float(text)


def _read_parquet(path: Path) -> list[Row]:
    parquet = _pyarrow(path)
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow raises a family of its own
        raise KvplanError(f"-o {path}: is not a Parquet file ({type(error).__name__})") from None
    return rows


def _write_parquet(path: Path, rows: list[Row], columns: Sequence[str]) -> None:
    parquet = _pyarrow(path)
    import pyarrow as pa

    def column(name: str) -> Any:
        values = [row[name] for row in rows]
        if name in FIGURES or name == HASH:
            return pa.array(values, _TYPES.get(name, "string" if name in (HASH, *TEXTS) else "float64"))
        kinds = {type(v) for v in values}
        if kinds <= {int, float} or len(kinds) == 1 <= len(kinds & {str, bool}):
            return pa.array(values, "float64" if float in kinds else None)
        return pa.array([v if isinstance(v, str) else json.dumps(v, default=str) for v in values])

    table = {name: column(name) for name in columns}
    beside = path.with_name(path.name + ".new")
    parquet.write_table(pa.table(table), beside)
    os.replace(beside, path)


_TYPES = {**dict.fromkeys(COUNTS, "int64"), "slo_met": "bool"}


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise KvplanError(f"-o {path}: Parquet needs pyarrow: pip install 'kvplan[sweep]'") from None
    return parquet
