"""Batches that vLLM captures as CUDA graphs: their sizes, how many there are, and to which one a step is padded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import Literal, NamedTuple

from kvplan.ground.units import cdiv

MAX_CAPTURE_SIZE = 512
"""Largest batch that vLLM captures a CUDA graph for by default (`max_cudagraph_capture_size`)."""
FINE_UP_TO = 32
"""Up to which size `--performance-mode interactivity` captures every one."""

Kind = Literal["", "piecewise", "full"]
"""How a step runs: launched kernel by kernel, as graphs between attention layers, as one graph."""
MODES: dict[str, tuple[Kind, Kind]] = {
    "NONE": ("", ""),
    "PIECEWISE": ("piecewise", "piecewise"),
    "FULL": ("full", "full"),
    "FULL_DECODE_ONLY": ("full", ""),
    "FULL_AND_PIECEWISE": ("full", "piecewise"),
}
"""`cudagraph_mode` -> how steps of decodes alone run, and all others (vLLM 0.32 `config/compilation.py`)."""
OWN_DECODES = ("FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
"""Modes that capture decodes apart from other steps."""


class Support(IntEnum):
    """Which steps an attention backend's kernels can be captured in (vLLM's `AttentionCGSupport`)."""

    NEVER = 0
    SINGLE_TOKEN = 1
    """Decodes of one token each."""
    UNIFORM = 2
    """Decodes of equally many tokens each."""
    ALWAYS = 3


def max_capture_size(compute_capability: float) -> int:
    """That size on a card: twice as large on the 10.x family (vLLM 0.32 `config/vllm.py`).

    >>> max_capture_size(9.0), max_capture_size(10.3)
    (512, 1024)
    """
    return 2 * MAX_CAPTURE_SIZE if 10 <= compute_capability < 11 else MAX_CAPTURE_SIZE


def capture_sizes(max_size: int = MAX_CAPTURE_SIZE, *, fine: bool = False) -> tuple[int, ...]:
    """1, 2, 4, then every 8 up to 256, every 16 beyond; `fine`: every size up to 32.

    >>> capture_sizes(32), len(capture_sizes(32, fine=True))
    ((1, 2, 4, 8, 16, 24, 32), 32)
    """
    begin = range(1, FINE_UP_TO + 1) if fine else (1, 2, 4)
    sizes = {*begin, *range(8, 256, 8), *range(256, max_size + 1, 16)}
    return tuple(sorted(s for s in sizes if s <= max_size))


def default_sizes(
    max_num_seqs: int,
    max_num_batched_tokens: int,
    *,
    width: int = 1,
    ceiling: int = MAX_CAPTURE_SIZE,
    stated_max: int | None = None,
    fine: bool = False,
    widest: Mapping[int, int] | None = None,
) -> tuple[int, ...]:
    """Sizes, in tokens, of which nobody states each (vLLM 0.32 `config/vllm.py: _set_cudagraph_sizes`).

    The staircase up to twice the widest decode batch, at most `ceiling`, and each decode batch of `width` tokens a
    sequence; `stated_max` is the user's largest, which adds no decode batches. max_num_batched_tokens itself counts
    where it is that small. `widest`: tokens of a sequence -> the widest batch of such decodes, where several numbers of
    drafts are made; None: all are `width`.

    >>> 42 in default_sizes(6, 8192, width=7), default_sizes(6, 8192, width=7, stated_max=42)[-2:]
    (True, (32, 40))
    >>> 27 in default_sizes(20, 8192, width=4, widest={3: 9, 1: 20})
    True
    """
    most = min(2 * max_num_seqs * width, ceiling) if stated_max is None else stated_max
    batches = ((tokens, min(n, ceiling)) for tokens, n in (widest or {width: max_num_seqs}).items())
    decodes = {n * tokens for tokens, most_of in batches for n in (*capture_sizes(most_of), most_of)}
    if stated_max is not None:
        decodes = set()
    if width == 1:
        decodes &= {max_num_seqs}
    decodes = {n for n in decodes if n <= most and n <= max_num_batched_tokens}
    most = min(most, max_num_batched_tokens)
    whole = {max_num_batched_tokens} if max_num_batched_tokens <= most else set()
    return tuple(sorted({*capture_sizes(most, fine=fine), *whole, *decodes}))


class Graphs(NamedTuple):
    """The CUDA graphs of one engine."""

    mode: str = "NONE"
    """`cudagraph_mode` as the engine settled it."""
    sizes: tuple[int, ...] = ()
    """Tokens of a batch, ascending."""
    max_num_seqs: int = 0
    width: int = 1
    """Tokens of a decoding sequence: one and its drafts."""
    num_cases: int = 1
    """Sets of all graphs: with LoRA one without adapters and one with."""
    widths: tuple[int, ...] = ()
    """Tokens of a decoding sequence, of each number of drafts that is made; empty: `width` alone."""
    varlen: bool = False
    """Whether graphs of decodes take sequences of any number of tokens up to `width`, so that no size is rounded."""

    @property
    def decodes(self) -> Kind:
        """How steps of decodes alone run."""
        return MODES[self.mode][0]

    @property
    def others(self) -> Kind:
        """How steps with prompt tokens run."""
        return MODES[self.mode][1]

    @property
    def own_decode_sizes(self) -> tuple[int, ...]:
        """Tokens of the graphs of decodes alone that verify all drafts."""
        return self.own_sizes_of(self.width)

    def own_sizes_of(self, width: int) -> tuple[int, ...]:
        """Tokens of the graphs of decodes alone: each size rounded up to whole sequences, none beyond the largest.

        Source: vLLM 0.32 `v1/worker/gpu/cudagraph_utils.py: _init_candidates`.
        """
        if self.mode not in OWN_DECODES or not self.sizes:
            return ()
        most = min(self.max_num_seqs * width, self.sizes[-1])
        if self.varlen:
            return tuple(n for n in self.sizes if n <= most)
        rounded = {width * cdiv(n, width) for n in self.sizes}
        return tuple(sorted(n for n in rounded if n <= most))

    @property
    def other_sizes(self) -> tuple[int, ...]:
        """Tokens of the graphs that steps with prompt tokens run in, and decodes without graphs of their own."""
        return self.sizes if self.others else ()

    @property
    def decode_sizes(self) -> tuple[int, ...]:
        """Tokens that steps of decodes alone are padded to: their own graphs first, then the others' beyond those."""
        own = self.own_decode_sizes
        most = own[-1] if own else 0
        return (*own, *(n for n in self.other_sizes if n > most))

    def decode_graph(self, num_tokens: int, width: int) -> tuple[int, Kind]:
        """The graph that a step of decodes of `width` tokens each replays, 0 if they differ: its tokens, and its kind.

        The next one of decodes, whatever their width: where it is another's, one of the others'; (0, "") for none.
        Source: vLLM 0.32 `v1/worker/gpu/cudagraph_utils.py: _init_candidates, dispatch`.
        """
        size = next_size(num_tokens, _sizes_of_decodes(self))
        if size and width in (self.widths or (self.width,)) and size in self.own_sizes_of(width):
            return size, self.decodes
        size = next_size(num_tokens, self.other_sizes)
        return size, self.others if size else ""

    @property
    def num_captured(self) -> int:
        """Graphs captured at start-up."""
        own = sum(len(self.own_sizes_of(width)) for width in self.widths or (self.width,))
        return self.num_cases * (own + len(self.other_sizes))


@lru_cache(64)
def _sizes_of_decodes(graphs: Graphs) -> tuple[int, ...]:
    """Tokens of all graphs of decodes alone."""
    widths = graphs.widths or (graphs.width,)
    return tuple(sorted({n for width in widths for n in graphs.own_sizes_of(width)}))


def settled_mode(mode: str, support: Support, width: int, *, compiled: bool, split: bool) -> str:
    """The mode that is left of the one asked where attention cannot be captured so; "" where the start fails.

    `compiled`: by vLLM's own backend; `split`: into pieces between attention layers. Source: vLLM 0.32
    `config/compilation.py: resolve_cudagraph_mode_and_sizes`.

    >>> settled_mode("FULL", Support.UNIFORM, 1, compiled=True, split=True)
    'FULL_AND_PIECEWISE'
    """
    if mode == "FULL" and support is Support.NEVER:
        return ""
    if mode == "FULL" and support is not Support.ALWAYS:
        mode = "FULL_AND_PIECEWISE" if split else "FULL_DECODE_ONLY"
    full = MODES[mode][0] == "full"
    if full and support is Support.NEVER:
        return "PIECEWISE" if compiled and split else "NONE"
    if full and width > 1 and support < Support.UNIFORM:
        return "PIECEWISE" if split else "NONE"
    return mode


def next_size(num_tokens: int, sizes: tuple[int, ...]) -> int:
    """The size that a step is padded to; 0: it fits none.

    >>> next_size(5, (1, 2, 4, 8)), next_size(9, (1, 2, 4, 8))
    (8, 0)
    """
    return sizes[bisect_left(sizes, num_tokens)] if sizes and num_tokens <= sizes[-1] else 0
