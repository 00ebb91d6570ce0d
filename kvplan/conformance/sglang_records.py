"""What a replay of SGLang's twin writes down of each pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from kvplan.schedulers.sglang.kv_cache import KVCache

MODES = {"prefill": "P", "decode": "D", "mixed": "M", "none": "-", "idle": "I"}


def pools(cache: KVCache) -> tuple[int, int, int]:
    """Tokens free, cached and unheld, cached and held."""
    return cache.available_size, cache.tree.evictable_size, cache.tree.protected_size


@dataclass(slots=True)
class PassRecord:
    """What was decided in one pass."""

    step: int
    arrivals: list[str] = field(default_factory=list)
    mode: Literal["prefill", "mixed", "decode", "none", "idle"] = "none"
    sched: list[tuple[str, int, int, str]] = field(default_factory=list)
    """(id, tokens, computed before, new | resumed | prefill | decode) in batch order."""
    hits: dict[str, int] = field(default_factory=dict)
    """Admitted id -> tokens hit."""
    retracted: list[str] = field(default_factory=list)
    preempted: list[str] = field(default_factory=list)
    oom_aborted: list[str] = field(default_factory=list)
    pools: tuple[int, int, int] = (0, 0, 0)
    """Free, evictable, protected tokens after scheduling."""
    evicted: int = 0
    """Cached tokens evicted while scheduling."""
    running: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    chunked: str = ""
    ratio: float = 0.0
    """The new-token ratio after scheduling."""
    full: bool = False
    """batch_is_full after scheduling."""
    finished: list[str] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    pools_end: tuple[int, int, int] = (0, 0, 0)
    evicted_end: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens computed."""
        return sum(row[1] for row in self.sched)

    def to_json(self) -> dict[str, Any]:
        """Return the record as one line of the log."""
        return {"type": "step"} | {name: getattr(self, name) for name in self.__slots__}

    def row(self) -> list[int | float | str]:
        """Return the reference log's columns."""
        num_out = len(self.retracted) + len(self.preempted)
        row: list[int | float | str] = [self.step, MODES[self.mode], len(self.sched), self.n_tokens]
        row += [sum(self.hits.values()), *self.pools, self.evicted, len(self.running), len(self.waiting)]
        row += [num_out, len(self.finished), self.ratio, int(self.full), *self.pools_end, self.evicted_end]
        return row

    def sched_line(self) -> str:
        """Return the line that `sched_sha256` hashes."""
        batch = ";".join(f"{i},{n},{before}" for i, n, before, _ in self.sched)
        gone = (self.retracted, self.preempted, self.oom_aborted)
        return "|".join([batch, *(",".join(ids) for ids in gone)]) + "\n"

    def state_line(self) -> str:
        """Return the line that `state_sha256` hashes."""
        pools = (",".join(map(str, counts)) for counts in (self.pools, self.pools_end))
        queues = (",".join(self.running), ",".join(self.waiting), self.chunked or "-")
        ends = (",".join(self.finished), ",".join(self.aborted), f"{self.ratio:.6f}")
        return "|".join([*pools, f"{self.evicted},{self.evicted_end}", *queues, *ends]) + "\n"
