"""The file of a sweep: rows are appended as points finish, and found again after a kill.

CSV and JSONL are appended to directly, under a lock: two sweeps may fill one file. Parquet cannot be: its rows wait in
a JSONL file beside it. At the end the file is written anew in the order of the points, so that how a sweep ran leaves
no trace in it. A torn last line, as a kill leaves it, is cut off; any other line that is no row is refused.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import append_whole, cell_text, locked, safe_cell, written_whole
from kvplan.search.point_row import COUNTS, FIGURES, TEXTS, TRUTHS, Row

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
            self._read_parquet()
            with locked(self.journal) as file:
                self._read_journal(file)
        except OSError as error:
            raise self._trouble(error) from None

    def add(self, row: Row) -> None:
        """Append one finished row, whole and at once. Raises KvplanError when the disk does not take it."""
        try:
            append_whole(self.journal, self._text(row, self.journal))
        except OSError as error:
            raise self._trouble(error) from None
        self.found[row[HASH]] = row

    def finish(self, order: Sequence[str]) -> None:
        """Write all rows in the order of their points, then those of other points, also of a sweep that still runs."""
        try:
            with locked(self.journal) as file:
                self._read_parquet()
                self._read_journal(file)
                rows = {h: self.found[h] for h in order if h in self.found} | self.found
                if self._is_parquet:
                    _write_parquet(self.path, list(rows.values()), self.columns)
                    self.journal.unlink()
                else:
                    with written_whole(self.path) as out:
                        lines = [self._header, *(self._text(row, self.path) for row in rows.values())]
                        out.writelines(f"{line}\n" for line in lines if line)
        except OSError as error:
            raise self._trouble(error) from None

    @property
    def _header(self) -> str:
        """The first line of a CSV; the other formats have none."""
        return _csv_line(self.columns) if self.path.suffix == ".csv" else ""

    def _read_parquet(self) -> None:
        if self._is_parquet and self.path.exists():
            for row in _read_parquet(self.path):
                self._keep(row, "")

    def _read_journal(self, file: IO[bytes]) -> None:
        """Note the rows of a locked file; its torn last line is cut off, a whole one without its end gets it."""
        file.seek(0)
        *lines, last = file.read().split(b"\n")
        texts = [line.decode(errors="replace") for line in lines]
        size = file.tell()
        if last and self._is_torn(last.decode(errors="replace"), is_first=not lines):
            size -= len(last)
            file.truncate(size)
        elif last:
            file.write(b"\n")
            texts.append(last.decode(errors="replace"))
        if self._header and size == 0:
            file.write(f"{self._header}\n".encode())
        elif self._header and texts:
            self._check_columns(next(csv.reader([texts[0]]), []))
            texts[0] = ""
        for number, text in enumerate(texts, 1):
            if text:
                where = f" line {number}"
                self._keep(self._row(text, where), where)

    def _is_torn(self, text: str, is_first: bool) -> bool:
        """Whether a last line without its end is the beginning of one of ours."""
        if self._header:
            return self._header.startswith(text) if is_first else len(_cells(text)) != len(self.columns)
        head = f'{{"{HASH}": "'
        return _json(text) is None and text[: len(head)] == head[: len(text)]

    def _row(self, text: str, where: str) -> Row:
        if not self._header:
            return _json(text) or self._refuse(where, f"{text[:40]!r} is no row of a sweep")
        try:
            return dict(zip(self.columns, map(_value, self.columns, _cells(text)), strict=True))
        except ValueError:
            return self._refuse(where, f"{text[:40]!r} is no row of this sweep")

    def _keep(self, row: Row, where: str) -> None:
        self._check_columns(list(row))
        wrong = [name for name in (HASH, *FIGURES) if not _is_sound(name, row[name])]
        if wrong:
            self._refuse(where, f"{wrong[0]} cannot be {str(row[wrong[0]])[:40]!r}")
        self.found[row[HASH]] = row

    def _check_columns(self, columns: list[str]) -> None:
        if tuple(columns) != self.columns:
            keys = tuple(name for name in columns if name not in FIGURES and name != HASH)
            if keys == self.keys:
                self._refuse("", "has the columns of another version of kvplan")
            other = ", ".join(keys)
            self._refuse(
                "", f"holds a sweep over {other[:200] or 'something else'}, not over {', '.join(self.keys)}"
            )

    def _refuse(self, where: str, why: str) -> NoReturn:
        raise KvplanError(f"-o {self.path}{where}: {why}; choose another file, or remove it")

    def _text(self, row: Row, path: Path) -> str:
        return _csv_line(row.values()) if path.suffix == ".csv" else json.dumps(row, default=str)

    def _trouble(self, error: Exception) -> KvplanError:
        why = getattr(error, "strerror", None) or type(error).__name__
        kept = f"; {len(self.found):,} finished rows are kept" if self.found else ""
        return KvplanError(f"-o {self.path}: {why}{kept}; run the same command again to go on")


def _csv_line(values: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(
        [
            "" if v is None else safe_cell(" ".join(v.splitlines()) if isinstance(v, str) else v)
            for v in values
        ]
    )
    return out.getvalue()


def _cells(text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error:
        return []


def _json(text: str) -> Row | None:
    """The object that a line holds, if it holds one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_sound(column: str, value: Any) -> bool:
    """Whether a figure has its kind of value; None where a point has no figures."""
    if column in (HASH, *TEXTS):
        return isinstance(value, str) or (value is None and column in TEXTS[:3])
    if column in TRUTHS:
        return value is None or isinstance(value, bool)
    if column in COUNTS:
        return value is None or (type(value) is int and abs(value) < 2**63)
    return value is None or (isinstance(value, int | float) and -1e300 < value < 1e300)


def _value(column: str, text: str) -> Any:
    """A cell of a CSV as it was before it was written; keys are filled in from the point later."""
    if column in TEXTS or column not in FIGURES:
        return cell_text(text)
    if text == "":
        return None
    if column in COUNTS:
        return int(text)
    return text == "True" if column in TRUTHS else float(text)


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
    with written_whole(path, mode="wb") as file:
        parquet.write_table(pa.table(table), file)


_TYPES = dict.fromkeys(COUNTS, "int64") | dict.fromkeys(TRUTHS, "bool")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise KvplanError(f"-o {path}: Parquet needs pyarrow: pip install 'kvplan[sweep]'") from None
    return parquet
