"""What engines complain of: errors and warnings by their own words, each with the figures it tells.

Facts of message formats, read off the engines' sources and public logs: vLLM 0.5 to 0.33, PyTorch's allocator,
SGLang 0.3 to 0.5, TensorRT-LLM 0.8 to 1.0. Figures and known names are kept, never a line.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
WINDOW = 8
"""Lines that one message may be wrapped over."""
LONGEST = 4096
"""Characters of a window."""


class Message(NamedTuple):
    """One complaint."""

    kind: str
    """Name of its row in `KINDS`."""
    engine: str
    """vllm, sglang, tensorrt-llm; empty where any engine's may be."""
    figures: Mapping[str, float]
    """GiB, tokens or counts, by the names of its row."""
    line: int


class Kind(NamedTuple):
    """How a complaint is found. `<name>` stands for a number, `<name!>` for a size with its unit, made GiB."""

    name: str
    engine: str
    literal: str
    """Words that its first line holds."""
    regex: re.Pattern[str]


def _kinds(rows: list[tuple[str, str, str, str]]) -> tuple[Kind, ...]:
    return tuple(Kind(name, engine, literal, _regex(text)) for name, engine, literal, text in rows)


def _regex(text: str) -> re.Pattern[str]:
    text = re.sub(r"<(\w+)!>", lambda m: rf"(?P<{m[1]}>{NUMBER})\s?(?P<{m[1]}_unit>bytes|[KMGT]i?B)", text)
    text = re.sub(r"(?<!\?P)<(\w+)>", lambda m: rf"(?P<{m[1]}>{NUMBER})", text)
    return re.compile(text.replace(" ", r"\s+"))


KINDS = _kinds(
    [
        ("too_long", "vllm", "max seq len", r"max seq len \(<asked>\),? \(?<needed!> KV cache is needed"),
        (
            "too_long",
            "vllm",
            "max seq len",
            r"max seq len \(<asked>\) is larger than the maximum number of tokens that can be stored in "
            r"(?:the )?KV cache \(<held>\)",
        ),
        ("no_room", "vllm", "No available memory", r"No available memory for the cache blocks"),
        (
            "occupied",
            "vllm",
            "Free memory on device",
            r"Free memory on device (?:\S+ )?\(<free>/<total> GiB\) on startup is less than desired GPU memory "
            r"utilization \(<share>, <budget> GiB\)",
        ),
        (
            "released",
            "vllm",
            "Error in memory profiling",
            r"Error in memory profiling\. .{0,40}?[Ii]nitial (?:used|free) memory <before>.{0,60}?"
            r"(?:currently used|current free) memory:? <after>",
        ),
        ("released", "vllm", "Error in memory profiling", r"Error in memory profiling"),
        (
            "sampler",
            "vllm",
            "warming up sampler",
            r"out of memory occurred when warming up sampler with <seqs> dummy",
        ),
        (
            "states",
            "vllm",
            "Mamba cache blocks",
            r"max_num_seqs \(<seqs>\) exceeds .{0,12}Mamba cache blocks \(<blocks>\)",
        ),
        (
            "derived_len",
            "vllm",
            "greater than the derived",
            r"max_model_len \(<asked>\) is greater than the derived max_model_len \(\w+=<derived>",
        ),
        (
            "heads",
            "vllm",
            "attention heads",
            r"attention heads \(<heads>\) must be divisible by tensor parallel size \(<ranks>\)",
        ),
        (
            "experts",
            "vllm",
            "divisible by ep_size",
            r"n_(?:physical|routed)_experts=<experts> must be divisible by ep_size=<ranks>",
        ),
        (
            "uneven_node",
            "vllm",
            "number of tensor parallelism",
            r"number of GPUs per node is not divisible by the number of tensor parallelism",
        ),
        (
            "batch_below_length",
            "vllm",
            "max_num_batched_tokens",
            r"max_num_batched_tokens \(<batch>\) is smaller than max_model_len \(<asked>\)",
        ),
        (
            "few_cards",
            "vllm",
            "available GPUs",
            r"World size \(<ranks>\) is larger than the number of available GPUs \(<cards>\)",
        ),
        (
            "few_cards",
            "vllm",
            "number of required GPUs",
            r"number of required GPUs exceeds the total number of available GPUs",
        ),
        (
            "context",
            "vllm",
            "maximum context length",
            r"maximum context length is <length> tokens\. However, you(?:r prompt contains| requested)"
            r"(?: at least)? <asked>",
        ),
        (
            "context",
            "vllm",
            "maximum model length",
            r"prompt \(?.{0,60}?(?:length|of) <asked>\)?.{0,80}?maximum model length of <length>",
        ),
        (
            "preempted",
            "vllm",
            "is preempted by",
            r"is preempted by PreemptionMode.{0,80}not enough KV cache space",
        ),
        (
            "bfloat16",
            "vllm",
            "Bfloat16 is only supported",
            r"Bfloat16 is only supported on GPUs with compute capability of at least <least>",
        ),
        ("swap", "vllm", "Too large swap space", r"Too large swap space\. <asked!> out of the <total!>"),
        (
            "fraction_low",
            "sglang",
            "increase --mem-fraction-static",
            r"Not enough memory\W.{0,40}?try (?:to )?increas(?:e|ing) --mem-fraction-static"
            r"(?:.{0,60}?mem_fraction_static=<share>)?",
        ),
        ("graph_capture", "sglang", "apture cuda graph failed", r"Capture cuda graph failed"),
        ("graph_capture", "sglang", "apture CUDA graph failed", r"Capture CUDA graph failed"),
        (
            "unbalanced",
            "sglang",
            "memory capacity is unbalanced",
            r"memory capacity is unbalanced(?:.{0,80}?_memory=<least>, local_gpu_memory=<here>)?",
        ),
        (
            "retracted",
            "sglang",
            "#retracted_reqs",
            r"(?:KV cache pool is full\. Retract requests|[Dd]ecode out of memory happened)"
            r".{0,9}#retracted_reqs: <seqs>",
        ),
        (
            "retracted",
            "sglang",
            "out of memory",
            r"(?:Prefill|Decode) out of memory\. Try to lower your batch size",
        ),
        (
            "context",
            "sglang",
            "nput length",
            r"[Ii]nput length \(<asked> tokens\) exceeds the maximum allowed length \(<length> tokens\)",
        ),
        (
            "context",
            "sglang",
            "context length",
            r"longer than the model's context length \(<length> tokens\)",
        ),
        (
            "too_long",
            "tensorrt-llm",
            "maxTokensInPagedKvCache",
            r"maxTokensInPagedKvCache (?:\(<held>\) )?must be large enough",
        ),
        (
            "context",
            "tensorrt-llm",
            "max_seq_len",
            r"prompt length \(<asked>\).{0,60}? max_tokens \(<answer>\) should not exceed max_seq_len \(<length>\)",
        ),
        (
            "context",
            "tensorrt-llm",
            "maximum input length",
            r"[Pp]rompt length \(?<asked>\)? exceeds maximum input length \(?<length>\)?",
        ),
        (
            "allocation",
            "",
            "out of memory",
            r"(?:CUDA|HIP) out of memory\. Tried to allocate <tried!>",
        ),
        (
            "allocation",
            "",
            "out of memory",
            r"(?:CUDA error: out of memory|cudaMalloc.{0,80}?out of memory|Requested size .{0,40}out of memory)",
        ),
        (
            "shared_memory",
            "",
            "shared memory",
            r"(?:Error while creating shared memory segment \S+ \(size <size>\)|[Uu]nable to "
            r"(?:open|mmap|write to|allocate) shared memory)",
        ),
        (
            "shared_memory",
            "",
            "/dev/shm",
            r"(?:[Nn]o space left on device.{0,40}/dev/shm|/dev/shm.{0,80}[Nn]o space left on device)",
        ),
        ("killed", "", "xit code", r"[Ee]xit ?code:? (?:137|-9)\b"),
        ("killed", "", "OOMKilled", r"OOMKilled"),
        (
            "lost",
            "vllm",
            "Engine core initialization failed",
            r"Engine core initialization failed\. See root cause above",
        ),
    ]
)
"""Every complaint, the most telling row of a kind first."""

ALLOCATION = _regex(
    r"total capac(?:it)?y of <total!>.{0,24}?of which <free!> is free\."
    r"(?:.{0,400}?(?:this process has|process(?:es)? ha(?:s|ve)) <mine!> memory in use)?"
    r"(?:.{0,200}?<allocated!> is allocated by PyTorch)?(?:.{0,160}?<idle!> is reserved by PyTorch but unallocated)?"
)
OLD_ALLOCATION = _regex(
    r"\(GPU \d+; <total!> total capacity; <allocated!> already allocated; <free!> free; <reserved!> reserved"
)
"""PyTorch before 2.1."""
OTHERS = _regex(r"Process \d+ has <used!> memory in use")
STAGES = (
    (
        "sampler",
        r"warming up sampler|_dummy_sampler_run|in (?:_?sample\b|apply_top_k_top_p|random_sample)|sampler\.py",
    ),
    (
        "images",
        r"get_multimodal_embeddings|embed_multimodal|_execute_mm_encoder|vision_tower|in _process_(?:image|video)",
    ),
    (
        "graphs",
        r"capture_model|cuda ?_?graph_runner|in capture\b|graph_capture|init_(?:cuda|device)_graphs|CudaGraphRunner",
    ),
    (
        "pool",
        r"_allocate_kv_cache|\binitialize_kv_cache\b|initialize_from_config|init_memory_pool|MHATokenToKVPool|KVPool|_create_buffers|kvCacheManager",
    ),
    ("profile", r"profile_run|determine_(?:num_)?available_(?:memory|blocks)|_dummy_run|profile_cudagraph"),
    (
        "load",
        r"load_model|create_weights|initialize_model|weight_loader|load_weights|process_weights_after_loading|get_model\(",
    ),
    (
        "serve",
        r"execute_model|forward_(?:batch|extend|decode)|run_batch|event_loop|engine_step|engine_loop|step\(",
    ),
)
"""Where an allocation failed, by functions of the traceback above it; the first that is found."""
SPEAKS = {"load": "loading the weights", "profile": "the profile run", "sampler": "the sampler's warm-up",
          "images": "the vision tower", "graphs": "capturing CUDA graphs", "pool": "allocating the KV pool",
          "serve": "serving", "": "a step that the text does not name"}  # fmt: skip
"""Stages in words."""

_PROCESS = r"(?:\([A-Z]\w*(?:[ ,]+[\w=.]+)*\)\s*)?"
_PREFIX = re.compile(
    rf"^{_PROCESS}(?:\[\d{{4}}-\d\d-\d\d[^\]]{{0,40}}\]\s*)?(?:(?:ERROR|INFO|WARNING|DEBUG) [\d-]+ [\d:.,]+ )?"
    rf"(?:\[[\w./-]+:\d+\]\s*)?{_PROCESS}"
)
"""What a logger puts in front of a line: process, time, file."""
_UNITS = {
    "bytes": 2**-30,
    "KiB": 2**-20,
    "MiB": 2**-10,
    "GiB": 1.0,
    "TiB": 1024.0,
    "KB": 2**-20,
    "MB": 2**-10,
    "GB": 1.0,
    "TB": 1024.0,
}


def read_messages(lines: Iterable[str]) -> tuple[Message, ...]:
    """Every complaint of a text, each (kind, figures) once, in order.

    Args:
        lines: cleaned of colours (`clean_lines`).
    """
    found: dict[tuple[str, tuple[tuple[str, float], ...]], Message] = {}
    above: deque[str] = deque(maxlen=120)
    for number, window, tight, first in _windows(lines):
        above.append(window[: min(first, 200)])
        for message in _of_window(number, (window, tight), first, above):
            found.setdefault((message.kind, tuple(sorted(message.figures.items()))), message)
    return tuple(found.values())


def _windows(lines: Iterable[str]) -> Iterator[tuple[int, str, str, int]]:
    """Each line with what may be wrapped below it, in one; its number, and how much of it is the line's own.

    Twice: forms break lines between words, terminals wherever the screen ends.
    """
    held: deque[str] = deque()
    number = 0
    for line in chain(lines, [""] * (WINDOW - 1)):
        held.append(_PREFIX.sub("", line, count=1)[:LONGEST])
        if len(held) == WINDOW:
            number += 1
            yield number, " ".join(held)[: 2 * LONGEST], "".join(held)[: 2 * LONGEST], len(held[0])
            held.popleft()


def _of_window(number: int, windows: tuple[str, str], first: int, above: Iterable[str]) -> Iterator[Message]:
    """Complaints that begin in the window's first line."""
    seen = set()
    for kind in KINDS:
        if kind.name in seen:
            continue
        found = (kind.regex.search(text) if kind.literal in text else None for text in windows)
        match = next((m for m in found if m and m.start() <= first), None)
        if match:
            window = match.string
            seen.add(kind.name)
            figures = _figures(match)
            if kind.name == "allocation":
                figures |= _allocation(window[match.end() :].partition("out of memory")[0], "\n".join(above))
            yield Message(kind.name, kind.engine, figures, number)


def _figures(match: re.Match[str]) -> dict[str, float]:
    """Numbers of a match; sizes in GiB."""
    told = match.groupdict()
    return {
        name: float(value.replace(",", "")) * _UNITS[told.get(f"{name}_unit") or "GiB"]
        for name, value in told.items()
        if value is not None and not name.endswith("_unit")
    }


def _allocation(rest: str, above: str) -> dict[str, float]:
    """What PyTorch says of the card, who else is on it, and how far the engine had come."""
    match = ALLOCATION.search(rest) or OLD_ALLOCATION.search(rest)
    figures = _figures(match) if match else {}
    others = [_figures(found)["used"] for found in OTHERS.finditer(rest)]
    stage = _stage(above) if _stage(above) < len(STAGES) else _stage(rest)
    listed = {"others": sum(others), "processes": float(len(others))} if others else {}
    return figures | listed | {"stage": float(stage)}


def _stage(text: str) -> int:
    return next((i for i, (_, names) in enumerate(STAGES) if re.search(names, text)), len(STAGES))


def stage_of(message: Message) -> str:
    """Where an allocation failed: a name of `STAGES`, or empty."""
    index = int(message.figures.get("stage", len(STAGES)))
    return STAGES[index][0] if index < len(STAGES) else ""
