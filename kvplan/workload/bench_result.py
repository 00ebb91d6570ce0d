"""The result file of a serving benchmark: `vllm bench serve --save-result --save-detailed`, SGLang's `bench_serving`.

One JSON object of parallel lists, an entry per request in the order in which they were sent. Read here for both
uses: as a trace (what was asked, when) and as a real run (what came of it). Knows no clock and no engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.workload.arrivals import AllAtOnce, Arrivals, ClosedLoop, Poisson

LISTS = ("input_lens", "output_lens", "start_times", "ttfts", "itls")
MAX_BYTES = 1 << 30
"""Of a file that is read whole."""


class BenchResult(NamedTuple):
    """What the file says. All lists have one entry per request; times are seconds."""

    input_lens: list[Any]
    output_lens: list[Any]
    """0 = the request failed."""
    start_times: list[float] | None
    """On the client's own clock; None = not written (SGLang, older vLLM)."""
    ttfts: list[Any] | None
    itls: list[Any] | None
    """Gaps between tokens: a list per request."""
    request_rate: float | None
    """Requests per second as asked for; inf = all at once; None = not written."""
    burstiness: float
    max_concurrency: int | None

    @property
    def sent(self) -> Arrivals | None:
        """How the benchmark was told to send, for a result without start times; None = it does not say."""
        rate = self.request_rate
        if rate is None:
            return None
        if math.isfinite(rate):
            return Poisson(kind="poisson", rate=rate, burstiness=self.burstiness)
        if self.max_concurrency:
            return ClosedLoop(kind="closed_loop", concurrency=self.max_concurrency)
        return AllAtOnce(kind="all_at_once")


def read_text(path: Path) -> str:
    """A whole text file. Raises KvplanError if it is none, or larger than 1 GiB."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise KvplanError(f"{path}: larger than {MAX_BYTES >> 30} GiB")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise KvplanError(f"{path}: cannot be read as text (not UTF-8)") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KvplanError(f"{path}: cannot be read as text ({reason})") from None


def json_of(text: str) -> Any:
    """The JSON value in a text; None for what is not JSON, nested too deeply, or a number of thousands of digits."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Number and object of each line; a line that is not a JSON object comes as what is wrong with it."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                found = json_of(line)
                yield number, found if isinstance(found, dict) else f"not a JSON object: {line.strip()[:40]}"


def bench_result(text: str, path: Path) -> BenchResult | None:
    """Read a benchmark's result; None if the text is something else (one request per line, a table).

    Raises KvplanError for several results in one file, and for lists that do not belong together.
    """
    found = json_of(text)
    if found is None:
        lines = [line for line in text.splitlines() if line.strip()]
        first = json_of(lines[0]) if lines else None
        if _is_result(first) and len(lines) > 1:
            raise KvplanError(
                f"{path}: {len(lines)} results, one a line; keep the line of the run that is meant"
            )
        found = first
    return _of(found, path) if _is_result(found) else None


def _is_result(found: Any) -> bool:
    return isinstance(found, dict) and ("input_lens" in found or "ttfts" in found)


def _of(found: dict[str, Any], path: Path) -> BenchResult:
    lists: dict[str, Any] = {name: found.get(name) or None for name in LISTS}
    missing = [name for name in ("input_lens", "output_lens") if lists[name] is None]
    if missing:
        raise KvplanError(f"{path}: no {', '.join(missing)}; save the bench result with --save-detailed")
    count = len(lists["input_lens"]) if isinstance(lists["input_lens"], list) else -1
    odd = [n for n, v in lists.items() if v is not None and not (isinstance(v, list) and len(v) == count)]
    if odd:
        raise KvplanError(f"{path}: {', '.join(LISTS)} must be lists of one length; {', '.join(odd)} differ")
    starts = lists["start_times"]
    if starts is not None and not all(_number(value) is not None for value in starts):
        raise KvplanError(f"{path}: start_times must be numbers")
    rate, burstiness = _number(found.get("request_rate")), _number(found.get("burstiness"))
    if rate is not None and not 0 < rate <= 1e9:
        rate = math.inf if rate > 0 else None
    concurrency = found.get("max_concurrency")
    is_count = isinstance(concurrency, int) and 1 <= concurrency <= 1_000_000
    return BenchResult(
        **lists,
        request_rate=rate,
        burstiness=burstiness if burstiness is not None and 0 < burstiness <= 1e6 else 1.0,
        max_concurrency=concurrency if is_count else None,
    )


def _number(value: Any) -> float | None:
    """A number, infinity included (vLLM writes "inf"); None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
