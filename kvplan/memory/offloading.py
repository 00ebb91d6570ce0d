"""`--kv-offloading-size`: slots and tokens of the tier in host memory, and from which length loading beats computing.

Closed form, of one engine (one data-parallel replica), as `CPUOffloadingSpec` of vLLM's `v1/kv_offload/cpu/spec.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.kv_transfer import offloading_flags
from kvplan.formulas.offloading import SLOT_ALIGNMENT, break_even_tokens, tier_chunks
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import TICKS_PER_S, GiB, cdiv, gib
from kvplan.memory.layout import KvGroup, Layout
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.profiles.host_links import DRIVES, Drive, HostLink, find_drive, find_host_link
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.step import StepShape

IDLE_LOOP_S = 1e-3
"""How long an engine sleeps between empty steps while copies run (vLLM `v1/engine/core.py`)."""


class Lengths(NamedTuple):
    """Tokens from which on loading is sooner: at the ends of what links, kernels and load leave open; None = never."""

    low: int | None
    high: int | None


class Span2(NamedTuple):
    """A count, low and high."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class FilesBelow:
    """A tier of files below host memory; vLLM deletes none, so it holds what its file system has room for."""

    drive: Drive
    file_bytes: int
    """Of one chunk, all copies."""
    bytes_per_token: float
    """In files, for each token of a long prompt."""
    break_even: Lengths
    reload_s: float
    """Seconds until a prefix of the asked trace's length is read and loaded, on an idle engine."""

    def to_dict(self) -> dict[str, object]:
        """Return an entry of `kv.offload.file_tiers`."""
        return {
            "drive": self.drive.name,
            "read_gb_s": self.drive.read_bytes_per_s / 1e9,
            "write_gb_s": self.drive.write_bytes_per_s / 1e9,
            "file_bytes": self.file_bytes,
            "bytes_per_token": self.bytes_per_token,
            "break_even_tokens": list(self.break_even),
            "reload_s": self.reload_s,
            "source": str(self.drive),
        }

    def lines(self, trace_tokens: int, recompute_s: float) -> list[str]:
        """Say what it holds and from which length on it pays."""
        read = f"{self.drive.read_bytes_per_s / 1e9:g} GB/s"
        first, last = self.break_even
        held = f"{self.bytes_per_token * 1e6 / GiB:,.0f} GiB a million tokens, never deleted"
        if first is None:
            return [
                f"Files below it ({self.drive.name}, reads {read}): {held}. They buy nothing: computing is sooner."
            ]
        until = _from_tokens(first, last)
        return [
            f"Files below it ({self.drive.name}, reads {read}): {held}. What host memory forgot is back sooner than"
            f" it is computed from {until}; {trace_tokens:,} in {_ms(self.reload_s)} instead of"
            f" {_ms(recompute_s)}."
        ]


@dataclass(frozen=True, slots=True)
class OffloadTier:
    """The tier of one engine."""

    size_bytes: int
    num_copies: int
    """Ranks that keep a part of each chunk; 1 where all hold the same latents and one stores them."""
    bytes_per_chunk: int
    """Of a slot: all copies, rounded up to 4,096."""
    num_chunks: int
    """Slots; a chunk of any group takes one."""
    chunk_tokens: int
    """Tokens of the smallest group's chunk."""
    tokens: Span2
    """Tokens of long prompts: if all groups store all their chunks, and if only those that keep every token do."""
    link: HostLink
    bytes_per_token: float
    """That one rank copies, for each token of a long prompt."""
    break_even: Lengths
    reload_s: float
    """Seconds until a prefix of the asked trace's length is loaded, on an idle engine."""
    recompute_s: float
    """Seconds to compute it."""
    timing_source: str
    files: tuple[FilesBelow, ...] = ()

    @property
    def sources(self) -> dict[str, str]:
        """Where each figure comes from."""
        return {
            "size": "asked: --kv-offloading-size, GiB of the whole engine",
            "num_chunks": "computed: as vLLM 0.32's CPUOffloadingSpec",
            "link": str(self.link),
            "break_even_tokens": f"computed: the link, and step times ({self.timing_source})",
        }

    def to_dict(self) -> dict[str, object]:
        """Return the `kv.offload` of the JSON document."""
        return {
            "size_bytes": self.size_bytes,
            "num_copies": self.num_copies,
            "bytes_per_chunk": self.bytes_per_chunk,
            "num_chunks": self.num_chunks,
            "chunk_tokens": self.chunk_tokens,
            "tokens": list(self.tokens),
            "bytes_per_token": self.bytes_per_token,
            "link": self.link.name,
            "link_gb_s": self.link.bytes_per_s / 1e9,
            "break_even_tokens": list(self.break_even),
            "reload_s": self.reload_s,
            "recompute_s": self.recompute_s,
            "sources": self.sources,
            "file_tiers": [files.to_dict() for files in self.files],
        }

    def lines(self, trace_tokens: int, cache_tokens: float) -> list[str]:
        """Say what the tier holds and what it buys, or that it buys nothing."""
        low, high = self.tokens
        held = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        rate = f"{self.link.bytes_per_s / 1e9:g} GB/s"
        return [
            f"Host tier: {round(gib(self.size_bytes), 2):,g} GiB, {self.num_chunks:,} chunks of"
            f" {self.bytes_per_chunk / 2**10:,.0f} KiB, {held} tokens ({self.link.name}, {rate}).",
            self._buys(trace_tokens, cache_tokens),
            *(line for files in self.files for line in files.lines(trace_tokens, self.recompute_s)),
        ]

    def _buys(self, trace_tokens: int, cache_tokens: float) -> str:
        first, last = self.break_even
        if not self.num_chunks:
            return "It buys nothing: not one chunk fits it."
        if first is None:
            return f"It buys nothing: up to {trace_tokens:,} tokens computing a prefix is sooner than loading it."
        if self.tokens[1] <= cache_tokens:
            return (
                "It buys next to nothing: it holds copies of what the GPU's pool of"
                f" {int(cache_tokens):,} tokens holds, and no more."
            )
        until = _from_tokens(first, last)
        return (
            f"A prefix that returns loads sooner than it is computed from {until};"
            f" one of {trace_tokens:,} in {_ms(self.reload_s)} instead of {_ms(self.recompute_s)}."
            " Prompts are stored, answers not before the next turn."
        )


def _from_tokens(first: int, last: int | None) -> str:
    """From which length on, at both ends of what is left open."""
    if last is None:
        return f"{first:,} tokens on at the best, never at the worst"
    return f"{first:,} tokens on" if first == last else f"{first:,} to {last:,} tokens on"


def _ms(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def num_copies(model: ModelSpec, args: EngineArgs) -> int:
    """Count the ranks whose parts a chunk has; latents, alike on all TP ranks, are kept once (`replicated_layout`)."""
    latent = all(layer.attention.kind is AttentionKind.MLA for layer in model.layers)
    tp, pp = args.tensor_parallel_size, args.pipeline_parallel_size
    if latent and tp > 1 and pp == 1 and args.decode_context_parallel_size == 1:
        return 1
    return tp * pp


def num_slots(model: ModelSpec, args: EngineArgs, layout: Layout, blocks_per_chunk: int = 1) -> int:
    """Return the slots of the tier that `--kv-offloading-size` asks for.

    All ranks count as the first pipeline stage's (vLLM 0.32 `kv_cache_utils.py: generate_scheduler_kv_cache_config`).
    """
    assert args.kv_offloading_size is not None
    size = int(args.kv_offloading_size * GiB)
    return int(tier_chunks(size, layout.bytes_per_block_of(0), blocks_per_chunk, num_copies(model, args)))


def slot_bytes(model: ModelSpec, args: EngineArgs, layout: Layout, blocks_per_chunk: int = 1) -> int:
    """Return the bytes of a slot, and of a file below it: a chunk's, all copies, rounded up to 4,096."""
    copied = layout.bytes_per_block_of(0) * blocks_per_chunk * num_copies(model, args)
    return cdiv(copied, SLOT_ALIGNMENT) * SLOT_ALIGNMENT


def copied_groups(layout: Layout) -> list[KvGroup]:
    """Groups whose blocks the tier holds: those that take part in prefix caching.

    Source: vLLM 0.32 `kv_connector/v1/offloading/config.py: get_offloading_group_ids`.
    """
    return [group for group in layout.groups if group.prefix_cacheable]


def bytes_to_copy(layout: Layout, num_tokens: int) -> int:
    """Return what one rank copies to load a prefix of so many tokens: of windows and states what a hit needs."""
    return sum(_group_bytes(group, num_tokens) for group in copied_groups(layout))


def _group_bytes(group: KvGroup, num_tokens: int) -> int:
    return _group_blocks(group, num_tokens) * group.copied_bytes


def _group_blocks(group: KvGroup, num_tokens: int) -> int:
    blocks = cdiv(num_tokens, group.block_tokens)
    if group.kind.is_fixed:
        blocks = min(1, blocks)
    elif group.window and not group.kind.is_growing:
        blocks = min(blocks, cdiv(group.window, group.block_size))
    return blocks


def find_tier(
    model: ModelSpec,
    gpu: GpuSpec,
    args: ResolvedArgs,
    engine: EngineVersion,
    layout: Layout,
    trace_tokens: int,
) -> OffloadTier:
    """Plan the tier of one engine; `trace_tokens` is the prefix whose two ways back are told."""
    assert args.kv_offloading_size is not None
    flags = offloading_flags(args.kv_transfer_config)
    per_chunk = flags.blocks_per_chunk
    chunks = num_slots(model, args, layout, per_chunk)
    growing = [g for g in copied_groups(layout) if g.kind.is_growing] or copied_groups(layout)
    times = make_step_times(model, gpu, args, engine=engine)
    measured = times.links(gpu)
    link = find_host_link(gpu, measured=measured)
    copies = num_copies(model, args)
    return OffloadTier(
        size_bytes=int(args.kv_offloading_size * GiB),
        num_copies=copies,
        bytes_per_chunk=slot_bytes(model, args, layout, per_chunk),
        num_chunks=chunks,
        chunk_tokens=min(g.block_tokens for g in copied_groups(layout)) * per_chunk,
        tokens=Span2(
            _tokens(chunks * per_chunk, tuple(copied_groups(layout))),
            _tokens(chunks * per_chunk, tuple(growing)),
        ),
        link=link,
        bytes_per_token=sum(g.copied_bytes / g.block_tokens for g in growing),
        break_even=_break_even(args, layout, link, times, trace_tokens, no_files, no_files),
        reload_s=link.seconds(bytes_to_copy(layout, trace_tokens)) + IDLE_LOOP_S,
        recompute_s=prefill_seconds(times, args.token_budget, trace_tokens),
        timing_source=times.source,
        files=tuple(
            _files(
                find_drive(DRIVES[tier.locality], measured=measured),
                model,
                args,
                layout,
                link,
                times,
                trace_tokens,
            )
            for tier in flags.secondary_tiers
        ),
    )


def no_files(num_tokens: int) -> float:
    """Seconds in which nothing is read from files."""
    return 0.0


def chunks_to_read(layout: Layout, num_tokens: int, blocks_per_chunk: int = 1) -> int:
    """Count the chunks of a prefix of so many tokens: of windows and states what a hit needs."""
    return sum(cdiv(_group_blocks(group, num_tokens), blocks_per_chunk) for group in copied_groups(layout))


def _files(
    drive: Drive,
    model: ModelSpec,
    args: ResolvedArgs,
    layout: Layout,
    link: HostLink,
    times: StepTimes,
    trace_tokens: int,
) -> FilesBelow:
    """Plan one tier of files: look-up (a step), one thread's reads, then the load from host memory."""
    per_chunk = offloading_flags(args.kv_transfer_config).blocks_per_chunk
    file_bytes = slot_bytes(model, args, layout, per_chunk)

    def reading(rate: float) -> Callable[[int], float]:
        def seconds(num_tokens: int) -> float:
            return 2 * IDLE_LOOP_S + drive.read_seconds(
                chunks_to_read(layout, num_tokens, per_chunk), file_bytes, rate
            )

        return seconds

    growing = [g for g in copied_groups(layout) if g.kind.is_growing] or copied_groups(layout)
    return FilesBelow(
        drive=drive,
        file_bytes=file_bytes,
        bytes_per_token=sum(file_bytes / (g.block_tokens * per_chunk) for g in growing),
        break_even=_break_even(
            args, layout, link, times, trace_tokens, reading(drive.read_high), reading(drive.read_low)
        ),
        reload_s=reading(drive.read_bytes_per_s)(trace_tokens)
        + link.seconds(bytes_to_copy(layout, trace_tokens))
        + IDLE_LOOP_S,
    )


def _tokens(num_chunks: int, groups: tuple[KvGroup, ...]) -> int:
    return int(num_chunks / sum(1 / group.block_tokens for group in groups))


def prefill_seconds(times: StepTimes, max_num_batched_tokens: int, num_tokens: int) -> float:
    """Return how long a prompt of so many tokens takes alone, in chunks of the step's budget."""
    ticks = past = 0
    while past < num_tokens:
        chunk = min(max_num_batched_tokens, num_tokens - past)
        ticks += times.step.ticks(StepShape(chunk, 0, 0, chunk, 1, chunk * (past + chunk / 2)))
        past += chunk
    return ticks / TICKS_PER_S


def _break_even(
    args: ResolvedArgs,
    layout: Layout,
    link: HostLink,
    times: StepTimes,
    trace_tokens: int,
    quick_read: Callable[[int], float],
    slow_read: Callable[[int], float],
) -> Lengths:
    """Ask at both ends: a fast link, slow kernels and an idle engine; a slow link, fast kernels, a full batch.

    `quick_read` and `slow_read` are what reading files takes before a load, by tokens.

    A load is seen at a poll, once a step, and its request runs one step (asynchronous: two) after that.
    """
    steps = 2 if args.async_scheduling else 1
    decodes = min(
        args.max_num_active_reqs,
        max(1, layout.num_usable_blocks // max(1, cdiv(trace_tokens, layout.block_size))),
    )
    busy = steps * times.time.ticks(StepShape(decodes, decodes, decodes * trace_tokens)) / TICKS_PER_S
    longest = max(trace_tokens, layout.max_model_len)

    def recompute(num_tokens: int) -> float:
        return prefill_seconds(times, args.token_budget, num_tokens)

    def at(rate: float, wait_s: float, factor: float, read: Callable[[int], float]) -> int | None:
        def reload(num_tokens: int) -> float:
            return link.latency_s + wait_s + read(num_tokens) + bytes_to_copy(layout, num_tokens) / rate

        return break_even_tokens(reload, _scaled(recompute, factor), layout.block_size, longest)

    doubt = times.doubt
    return Lengths(
        at(link.high, steps * IDLE_LOOP_S, doubt.prompt_high, quick_read),
        at(link.low, IDLE_LOOP_S + busy, doubt.prompt_low, slow_read),
    )


def _scaled(seconds: Callable[[int], float], factor: float) -> Callable[[int], float]:
    return lambda num_tokens: factor * seconds(num_tokens)
