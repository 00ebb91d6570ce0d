"""`read_log`: one engine start as its log tells it. Streams; keeps numbers, flags and names, never lines."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import NamedTuple

from kvplan.ground.errors import KvplanError
from kvplan.ground.tables import counted
from kvplan.observed.log_flags import FLAG_LINES, GPU_LINES, read_flags, read_gpu, read_model
from kvplan.observed.patterns import ENGINES
from kvplan.observed.reader import clean_lines


class Reading(NamedTuple):
    """A figure as printed once."""

    value: float
    line: int
    rank: str
    """Which process printed it; empty for an engine's only one."""


@dataclass(frozen=True, slots=True)
class StartupLog:
    """What one start-up printed. Sizes in GiB per GPU, whatever the log calls them."""

    engine: str
    """vllm, sglang or tensorrt-llm."""
    version: str
    """As printed, e.g. 0.11.0; empty if it is not."""
    legacy: bool
    """vLLM's first engine (V0) by the lines it prints."""
    model: str
    """Name or path; empty if not printed."""
    gpu: str
    """Product name; empty if not printed."""
    figures: Mapping[str, float]
    """Figure -> value on the rank that has least room for KV."""
    lines: Mapping[str, int]
    """Figure -> line number it was read from."""
    flags: Mapping[str, object]
    """Flags by `EngineArgs` field."""
    assumed_ranks: Mapping[str, int]
    """Sizes of splits of which only rank 0 speaks: two or more."""
    month: str
    """Year and month of its first dated line, e.g. 2025-07; empty if its lines carry no year."""
    notes: tuple[str, ...]
    """What a reader should know: several starts, unequal ranks."""


_VERSION = {
    "vllm": re.compile(r"(?:engine \(v|API server version v?)(\d+\.\d+[\w.+]*)"),
    "sglang": re.compile(r"(?:sglang[=_ -]v?|sglang_version['\"]?[:=] ?['\"]?)(\d+\.\d+[\w.]*)"),
    "tensorrt-llm": re.compile(r"(?:TensorRT[- ]LLM version:? |Engine version )(\d+\.\d+[\w.]*)"),
}
_RANK = re.compile(
    r"\((?P<vllm>(?:Engine\w*|Vllm\w*|\w*Worker\w*|APIServer)(?: [\w=]+)*?)(?:,? ?\b(?P<pid>pid=\d+)[^)]*)?\)"
    r"|\[\d{4}-[\d :-]+ (?P<sglang>(?:[DPTE]{2}\d+ ?)+)\]|\[RANK (?P<trt>\d+)\]"
)
_OPTION = re.compile(r"\s*(?:-\s+)?['\"]?--?[a-z]")
"""A line of a wrapped command, or of a list of arguments."""
_STAMP = re.compile(r"\[?(20\d\d-[01]\d)-[0-3]\d[ T]")
_COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:vllm serve|trtllm-serve|python3? -m (?:vllm|sglang)\.)")
"""A command line that begins a line."""
_RANKS = {"tensor_parallel_size": "TP", "pipeline_parallel_size": "PP", "data_parallel_size": "DP"}
"""What a worker's name calls its rank of each split: Worker_DP1_PP0_TP3; only splits of two and more are named."""
_BANNERS = (
    "non-default args",
    "Initializing an LLM engine",
    "LLM engine (v",
    "server_args=ServerArgs",
    "TRTGptModel maxBatchSize",
)
_V0 = (
    "the current vLLM instance can use",
    "GPU blocks:",
    "cuda blocks:",
    "a V0 LLM engine",
    "peak_torch_memory",
)
_V1 = (
    "a V1 LLM engine",
    "GPU KV cache size",
    "Available KV cache memory",
    "gpu_model_runner.py",
    "EngineCore",
)
_TWICE = ("weights_gib", "before_gib", "after_gib", "k_gib", "v_gib", "kv_gib", "graphs_gib")
"""Figures that SGLang prints again for a draft model; the first are the target's."""
_MANY = ("cache_tokens", "max_concurrency", "num_gpu_blocks")
"""Figures that one process prints once per rank."""


def read_log(lines: str | Iterable[str], *, broken_off: str = "") -> StartupLog:
    """Read a start-up log.

    Args:
        lines: the text, or its lines (`file_lines` streams a file).
        broken_off: an engine; then a log may end before the KV cache is sized, or hold no start at all, and is taken
            for that engine's where its figures do not tell another.

    Raises:
        KvplanError: no start-up in it, figures of two engines, figures that contradict each other, binary data.
    """
    start = _Start()
    for number, line in enumerate(clean_lines(lines), 1):
        start = start.at(line)
        start.read(number, line)
    return start.result(broken_off)


Readings = dict[str, list[tuple[int, Reading]]]
"""Figure -> (which pattern found it, reading)."""
Told = dict[str, dict[str, list[tuple[object, int]]]]
"""Engine -> flag -> (value, line number)."""


@dataclass(slots=True)
class _Start:
    """What has been read of one start."""

    readings: dict[str, Readings] = field(default_factory=lambda: {e: defaultdict(list) for e in ENGINES})
    flags: Told = field(default_factory=lambda: {e: defaultdict(list) for e in ENGINES})
    version: dict[str, str] = field(default_factory=dict)
    model: str = ""
    gpu: str = ""
    month: str = ""
    v0: bool = False
    v1: bool = False
    banners: set[tuple[str, str]] = field(default_factory=set)
    workers: dict[str, int] = field(default_factory=dict)
    """Size of a split -> highest rank among its workers' names."""
    preamble: Told | None = None
    """Flags told before the engine spoke, by a command above the log: they hold for a restart too."""
    starts: int = 1
    num_lines: int = 0

    def read(self, number: int, line: str) -> None:
        """Take what one line tells."""
        self.num_lines = number
        if not self.month and (stamp := _STAMP.match(line)):
            self.month = stamp[1]
        self._figures(number, line)
        self._workers(line)
        if any(literal in line for literal in FLAG_LINES) or _OPTION.match(line):
            self._configuration(number, line)
        if not self.gpu and any(literal in line for literal in GPU_LINES):
            self.gpu = read_gpu(line)
        self.v0 |= any(literal in line for literal in _V0)
        self.v1 |= any(literal in line for literal in _V1)
        if "version" in line or "engine (v" in line or "sglang" in line:
            told = {
                engine: found[1] for engine, spelled in _VERSION.items() if (found := spelled.search(line))
            }
            self.version = told | self.version

    def at(self, line: str) -> _Start:
        """The start that a line belongs to: a new one when the same process says hello again."""
        if _COMMAND.match(line) and any(self.readings.values()):
            return _Start(starts=self.starts + 1, gpu=self.gpu)
        banner = next((b for b in _BANNERS if b in line), None)
        if banner is None:
            return self
        hello = (banner, _rank(line).partition(" pid=")[0])
        start = self._restart() if hello in self.banners else self
        if start.preamble is None:
            start.preamble = deepcopy(start.flags)
        start.banners.add(hello)
        return start

    def _restart(self) -> _Start:
        assert self.preamble is not None
        again = _Start(starts=self.starts + 1, gpu=self.gpu, version=self.version)
        again.flags, again.preamble = deepcopy(self.preamble), self.preamble
        return again

    def _workers(self, line: str) -> None:
        match = _RANK.search(line[:400])
        name = match and (match["vllm"] if match["vllm"] and "Worker" in match["vllm"] else match["sglang"])
        for size, letters in _RANKS.items():
            for rank in re.findall(rf"{letters}(\d{{1,3}})\b", (name or "").replace("_", " ")):
                self.workers[size] = max(int(rank), self.workers.get(size, 0))

    def _figures(self, number: int, line: str) -> None:
        for engine, patterns in ENGINES.items():
            for index, pattern in enumerate(patterns):
                for match in pattern.regex.finditer(line) if pattern.literal in line else ():
                    reading = Reading(_number(pattern.figure, match[1], number), number, _rank(line))
                    self.readings[engine][pattern.figure].append((index, reading))

    def _configuration(self, number: int, line: str) -> None:
        self.model = self.model or read_model(line)
        for engine in ENGINES:
            for name, value in read_flags(line, engine).items():
                self.flags[engine][name].append((value, number))

    def result(self, broken_off: str = "") -> StartupLog:
        """The start that was read last."""
        engine = self._engine(broken_off)
        flags, ranks = self._agreed_flags(engine), 1
        sizes = {size: max(2, rank + 1) for size, rank in self.workers.items() if size not in flags}
        notes = [f"{size} {num} by the names of its workers" for size, num in sizes.items()]
        flags |= {size: num for size, num in sizes.items() if self.workers[size]}
        for size in _RANKS:
            ranks *= _ranks(flags.get(size, sizes.get(size)))
        readings = self.readings[engine]
        if engine == "sglang":
            readings = {name: _firsts(found) if name in _TWICE else found for name, found in readings.items()}
        figures = _figures(readings, ranks)
        if self.starts > 1:
            notes.append(f"the log holds {self.starts} starts; the last one is used")
        return StartupLog(
            engine=engine,
            version=self.version.get(engine, ""),
            legacy=engine == "vllm" and self.v0 and not self.v1,
            model=self.model,
            gpu=self.gpu,
            figures={name: reading.value for name, reading in figures.items()},
            lines={name: reading.line for name, reading in figures.items()},
            flags=flags,
            assumed_ranks={size: num for size, num in sizes.items() if size not in flags},
            month=self.month,
            notes=tuple(notes),
        )

    def _engine(self, broken_off: str) -> str:
        """The engine whose figures these are."""
        told = {engine: set(found) & _TELLING for engine, found in self.readings.items()}
        engines = [engine for engine, figures in told.items() if figures]
        if len(engines) > 1:
            raise KvplanError(f"figures of {' and '.join(engines)} in one log; give the log of one engine")
        if not engines and not broken_off:
            raise KvplanError(self._why_nothing())
        return engines[0] if engines else self._spoken_of(broken_off)

    def _spoken_of(self, usual: str) -> str:
        """The engine that a log of no pool speaks of most: its version, figures, flags."""

        def told(engine: str) -> tuple[int, int, bool]:
            return (
                len(self.readings[engine]) + 9 * (engine in self.version),
                len(self.flags[engine]),
                engine == usual,
            )

        return max(ENGINES, key=told)

    def _why_nothing(self) -> str:
        began = self.banners or any(self.flags.values())
        if began:
            return (
                f"the log of {counted(self.num_lines, 'line')} ends before the engine sized its KV cache; "
                "give the lines up to 'GPU KV cache size' (vLLM), 'max_total_num_tokens=' (SGLang) or "
                "'paged KV cache' (TensorRT-LLM)"
            )
        return (
            f"no start-up of vLLM, SGLang or TensorRT-LLM in its {counted(self.num_lines, 'line')}; "
            "expected e.g. 'Available KV cache memory: 55.30 GiB'"
        )

    def _agreed_flags(self, engine: str) -> dict[str, object]:
        """Each flag once; the resolved value where `auto` or -1 stands beside it."""
        agreed: dict[str, object] = {}
        for name, told in self.flags[engine].items():
            values = {value: line for value, line in told if value not in ("auto", -1)}
            if len(values) > 1 and name in _FIXED:
                (one, first), (other, second) = list(values.items())[:2]
                raise KvplanError(
                    f"the log contradicts itself: {name} is {one} in line {first} and {other} in line {second}; "
                    "give the lines of one start"
                )
            agreed[name] = next(iter(values), told[0][0])
        return agreed


_MOST = {"gib": 1 << 10, "mib": 1 << 20}
"""Unit at the end of a figure's name -> more than any card has of it."""
_MOST_COUNTED = 1 << 40
"""Bytes, tokens, blocks, sequences."""


def _number(figure: str, printed: str, line: int) -> float:
    """A printed number; KvplanError where no engine counts that far."""
    value = float(printed.replace(",", ""))
    if abs(value) > _MOST.get(figure.rpartition("_")[2], _MOST_COUNTED):
        raise KvplanError(f"line {line} of the log tells {figure} {value:,g}, more than any card holds")
    return value


_FIXED = ("max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "gpu_memory_utilization")
"""Flags that nothing changes between the command line and the engine."""
_TELLING = {"kv_gib", "cache_tokens", "num_gpu_blocks", "kv_bytes", "k_gib"}
"""Figures that say how large the KV pool became; without one there is nothing to compare."""


def _ranks(told: object) -> int:
    """A split's size as logged, 1 where it is none."""
    return told if type(told) is int and 0 < told <= 4096 else 1


def _rank(line: str) -> str:
    """Which process speaks; workers without a number are told apart by their process id."""
    match = _RANK.search(line[:400])
    if match is None:
        return ""
    if match["vllm"] is None:
        return (match["sglang"] or match["trt"]).strip()
    numbered = re.search(r"\d", match["vllm"]) or not match["pid"]
    return match["vllm"] if numbered or "Engine" in match["vllm"] else f"{match['vllm']} {match['pid']}"


def _firsts(found: list[tuple[int, Reading]]) -> list[tuple[int, Reading]]:
    """The first reading of each process."""
    first: dict[tuple[int, str], tuple[int, Reading]] = {}
    for index, reading in found:
        first.setdefault((index, reading.rank), (index, reading))
    return list(first.values())


def _figures(readings: Readings, ranks: int) -> dict[str, Reading]:
    """One reading of each figure: that of the rank with least room for KV, else the largest use."""
    first = {name: _first_pattern(name, found, ranks) for name, found in readings.items()}
    least = min(first.get("kv_gib", []), default=None)
    figures = {}
    for name, found in first.items():
        mine = [r for r in found if least and r.rank == least.rank]
        room = name in (*_MANY, "kv_gib", "before_gib", "after_gib", "total_gib", "k_gib", "v_gib")
        figures[name] = (min if room else max)(mine or found)
    return figures


def _first_pattern(name: str, found: list[tuple[int, Reading]], ranks: int) -> list[Reading]:
    """Readings of the most exact pattern, once they are known not to contradict each other."""
    for pattern in sorted({index for index, _ in found}):
        _check_equal(name, [reading for index, reading in found if index == pattern], ranks)
    best = min(index for index, _ in found)
    return [reading for index, reading in found if index == best]


def _check_equal(name: str, found: list[Reading], ranks: int) -> None:
    """One process prints one value of a figure; one that speaks for all ranks prints one for each."""
    by_rank: dict[str, list[Reading]] = defaultdict(list)
    for reading in found:
        by_rank[reading.rank].append(reading)
    for same in by_rank.values():
        low, high = min(same), max(same)
        speaks_for_all = name in _MANY and len(same) <= ranks
        if high.value - low.value > 0.011 + 0.01 * abs(high.value) and not speaks_for_all:
            first, second = sorted((low, high), key=lambda r: r.line)
            raise KvplanError(
                f"the log contradicts itself: {name} is {first.value:,g} in line {first.line} and "
                f"{second.value:,g} in line {second.line}; give the lines of one start"
            )
