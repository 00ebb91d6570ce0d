"""Lines of a log that may be anything: streamed, bounded, cleaned of colours; binary data is refused by name."""

from __future__ import annotations

import codecs
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import MiB

MOST_BYTES = 64 * MiB
"""Read at most; a start-up is told in the first of them."""
LONGEST_LINE = 1 << 16
"""Characters looked at in one piece; longer lines are read as several."""

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_BREAK = re.compile(r"[\r\n]+")
_COMMENT = re.compile(r"^\s*(?:[#>$]\s+)+")
"""What shells, quotes and comments put before a line."""


def file_lines(name: str | Path) -> Iterator[str]:
    """Lines of a file, or of standard input for `-`. Raises KvplanError for what is no text, or too long."""
    if str(name) == "-" and sys.stdin is not None:
        yield from stream_lines(sys.stdin.buffer)
        return
    try:
        with open(os.path.expanduser(name), "rb") as file:
            yield from stream_lines(file)
    except (OSError, ValueError) as error:
        if isinstance(error, KvplanError):
            raise
        why = "is a folder" if isinstance(error, IsADirectoryError) else "no such file, or not readable"
        raise KvplanError(f"{str(name)[:200]!r}: {why}; name a log, or - to read standard input") from None


def stream_lines(stream: BinaryIO) -> Iterator[str]:
    """Lines of a byte stream, in UTF-8 or, as PowerShell writes them, UTF-16."""
    first = stream.read(MiB)
    decoder = codecs.getincrementaldecoder(_encoding(first))(errors="replace")
    rest, seen, chunk = "", 0, first
    while chunk:
        seen += len(chunk)
        if seen > MOST_BYTES:
            raise KvplanError(
                f"the log is longer than {MOST_BYTES // MiB} MiB; keep the lines of one start-up (head -n 5000)"
            )
        *lines, rest = _BREAK.split(rest + _text(decoder.decode(chunk)))
        yield from lines
        while len(rest) > LONGEST_LINE:
            yield rest[:LONGEST_LINE]
            rest = rest[LONGEST_LINE:]
        chunk = stream.read(MiB)
    yield rest + decoder.decode(b"", final=True)


def _encoding(head: bytes) -> str:
    packed = next((kind for magic, kind in _PACKED.items() if head.startswith(magic)), None)
    if packed:
        raise KvplanError(f"the log is packed ({packed}); unpack it, e.g. zcat LOG.gz | kvplan reconcile -")
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8"


def _text(decoded: str) -> str:
    """The chunk, if it is text: no NUL and few bytes that are none."""
    strange = decoded.count("\ufffd")
    if "\0" in decoded or strange > 16 + len(decoded) // 10:
        raise KvplanError("binary data, not a log")
    return decoded


def clean_lines(lines: str | Iterable[str]) -> Iterator[str]:
    """Lines of a text, or of an iterable of lines, bare of colours and comment marks, in pieces of bounded length."""
    pieces = _BREAK.split(lines) if isinstance(lines, str) else lines
    size = 0
    for line in pieces:
        size += len(line)
        if size > MOST_BYTES:
            raise KvplanError(
                f"the log is longer than {MOST_BYTES // MiB} MiB; keep the lines of one start-up"
            )
        if "\0" in line:
            raise KvplanError("binary data, not a log")
        for start in range(0, len(line), LONGEST_LINE):
            yield _COMMENT.sub("", _COLOUR.sub("", line[start : start + LONGEST_LINE]))
