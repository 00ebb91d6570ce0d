"""Where the bundled files live, and writing files so that nothing is lost.

Bundled files lie beside the package in a checkout, inside it after installation. A written file is the old one or the
whole new one, whenever the plug is pulled.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from kvplan.ground.errors import KvplanError

PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = PACKAGE / "_data"


def _dir(installed: str, checkout: str) -> Path:
    inside = _INSTALLED / installed
    return inside if inside.is_dir() else PACKAGE.parent / checkout


def app_file() -> Path:
    """What Streamlit runs."""
    inside = _INSTALLED / "app.py"
    return inside if inside.is_file() else PACKAGE.parent / "app.py"


def catalog_dir() -> Path:
    """Model configs and the GPU table."""
    return PACKAGE / "catalog"


def scenarios_dir() -> Path:
    """The runnable scenarios, `*.yaml`."""
    return _dir("scenarios", "scenarios")


def profiles_dir() -> Path:
    """The fitted profiles, `*.json`."""
    return _dir("profiles", "calibration/profiles")


def measurements_dir() -> Path:
    """Raw measurements, `*.jsonl`."""
    return _dir("measurements", "calibration/measurements")


@contextmanager
def written_whole(path: Path | str, newline: str | None = None, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` when the block ends, and leaves it alone if the block fails.

    A temporary file beside it is flushed to the disk and renamed. A link keeps pointing where it did, permissions
    stay, and what is no regular file (a pipe, /dev/stdout) is written straight. `mode` is "w" (UTF-8) or "wb".
    Raises OSError naming `path`.
    """
    target = Path(os.path.realpath(path))
    encoding = None if "b" in mode else "utf-8"
    if target.exists() and not target.is_file():
        with target.open(mode, encoding=encoding, newline=newline) as stream:
            yield stream
        return
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:80]}.", dir=target.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, mode, encoding=encoding, newline=newline) as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), _mode(target))
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, name):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    _sync_folder(target.parent)


def write_whole(path: Path | str, text: str) -> None:
    """Write a text file, or leave the old one."""
    with written_whole(path) as file:
        file.write(text)


@contextmanager
def locked(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file (made if it is not there) to read and append; one process at a time, others wait.

    Who replaces it (`written_whole`) while holding it takes nothing from those who wait: they open the new one.
    """
    import fcntl  # not on Windows, where nothing is appended to

    while True:
        with open(path, "a+b", buffering=0) as file:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):
                yield file
                return


def append_whole(path: Path | str, line: str) -> None:
    """Append a line and bring it to the disk, whole or not at all; a last line without its end is given one."""
    with locked(path) as file:
        size = file.seek(0, os.SEEK_END)
        glued = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        try:
            data = b"\n" * glued + f"{line}\n".encode()
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError as error:
            os.truncate(path, size)
            raise OSError(error.errno, error.strerror, str(path)) from None


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would run (OWASP: CSV injection)."""


def safe_cell(value: Any) -> Any:
    """A value as a cell of a CSV: text that a spreadsheet would run gets an apostrophe; `cell_text` takes it off.

    >>> safe_cell("=HYPERLINK(1)"), safe_cell("'=x"), safe_cell("it's"), safe_cell(-1)
    ("'=HYPERLINK(1)", "''=x", "it's", -1)
    """
    return f"'{value}" if isinstance(value, str) and value.lstrip("'").startswith(_FORMULA) else value


def cell_text(cell: str) -> str:
    """The text of a cell that `safe_cell` made.

    >>> cell_text("'=HYPERLINK(1)"), cell_text("''=x"), cell_text("it's"), cell_text("'t")
    ('=HYPERLINK(1)', "'=x", "it's", "'t")
    """
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


@contextmanager
def patient_streams() -> Iterator[None]:
    """Standard output and error whose reader may leave (`| head`) or never was there (`2>&-`): the work goes on."""
    with redirect_stdout(_Patient(sys.stdout)), redirect_stderr(_Patient(sys.stderr)):
        yield


class _Patient:
    """A text stream that drops what nobody reads."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Let what is buffered, and what comes, go nowhere: Python flushes once more when it ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def refuse_same_file(reads: Iterable[Path | str | None], writes: Mapping[str, Path | str | None]) -> None:
    """Refuse to write, under the flags named in `writes`, over an input or over another output.

    Raises KvplanError. Links and different spellings of one path count as the same file; pipes may be shared.
    """
    taken = {_identity(path): f"is read as {path}" for path in reads if path is not None}
    for flag, path in writes.items():
        if path is None:
            continue
        if _identity(path) in taken:
            raise KvplanError(f"{flag} {path}: that file {taken[_identity(path)]}; name another")
        if not _is_stream(path):
            taken[_identity(path)] = f"is written by {flag}"


def check_outputs(
    reads: Iterable[Path | str | None],
    writes: Mapping[str, Path | str | None],
    *,
    makes_folders: bool = False,
) -> None:
    """Refuse, before the work, what could not be written after it: besides `refuse_same_file`, a folder, a place in a
    folder that is missing (unless the writer `makes_folders`) or takes no file.

    Raises KvplanError that names the flag.
    """
    refuse_same_file(reads, writes)
    for flag, path in writes.items():
        if path is None or (_is_stream(path) and not os.path.isdir(path)):
            continue
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise KvplanError(f"{flag} {path}: is a folder")
        folder = target.parent
        while makes_folders and not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise KvplanError(f"{flag} {path}: there is no folder {Path(path).parent}")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise KvplanError(f"{flag} {path}: cannot be written ({error.strerror})") from None


def _identity(path: Path | str) -> str:
    return os.path.realpath(path)


def _is_stream(path: Path | str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path)


def _is_at(file: IO[bytes], path: Path | str) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced; of a new one what the umask leaves."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make the rename itself last; some file systems cannot, and then it lasts as long as they say."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with suppress(OSError):
        os.fsync(handle)
    os.close(handle)
