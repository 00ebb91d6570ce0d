"""What the user wants to hold at once: requests of so many samples, of so many tokens; and how many blocks that takes.

Samples of one request share the full blocks of its prompt when prefix caching is on; hits stop one token short of
the prompt's end, as vLLM's do. Windows and states are not shared. Knows layouts, not memory.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field

from kvplan.engines.flags import ResolvedArgs, as_count
from kvplan.formulas.capacity import num_sequences, shared_blocks
from kvplan.ground.config import Config
from kvplan.ground.units import cdiv
from kvplan.memory.layout import Layout

Tokens = Annotated[int, BeforeValidator(as_count), Field(ge=1, le=1 << 32)]
Number = Annotated[int, BeforeValidator(as_count), Field(ge=1, le=1 << 32)]


class Demand(Config):
    """The expected load: lengths in tokens, and how many traces are to live at once."""

    input_len: Tokens | None = None
    """Tokens of a prompt."""
    output_len: Tokens | None = None
    """Tokens of a trace's output, thinking included."""
    num_samples: Number = 1
    """Samples per request; they share the prompt's blocks."""
    num_requests: Number = 1
    """Requests at once."""

    @property
    def is_stated(self) -> bool:
        """Whether any length was given."""
        return self.input_len is not None or self.output_len is not None

    @property
    def num_traces(self) -> int:
        """Traces asked for at once."""
        return self.num_samples * self.num_requests

    def trace_tokens(self, max_model_len: int) -> int:
        """Tokens of a full-grown trace; without stated lengths the longest allowed."""
        if not self.is_stated:
            return max_model_len
        return (self.input_len or 1) + (self.output_len or 0)

    def prompt_tokens(self) -> int:
        """Tokens of the prompt, 0 where none was stated."""
        return self.input_len or 0


class TraceBlocks(NamedTuple):
    """Blocks of full-grown traces."""

    alone: int
    """Blocks one trace holds."""
    shared: int
    """Of these, blocks that all samples of a request hold together."""

    def of(self, num_traces: int, num_samples: int) -> int:
        """Blocks of `num_traces` traces, `num_samples` to a request."""
        requests = cdiv(num_traces, num_samples)
        return num_traces * (self.alone - self.shared) + requests * self.shared

    def most_traces(self, num_blocks: int, num_samples: int) -> int:
        """Most traces that a pool of `num_blocks` (null block included) holds, requests filled one after another.

        >>> TraceBlocks(alone=10, shared=4).most_traces(35, num_samples=3)
        4
        """
        if num_samples == 1 or self.shared == 0:
            return int(num_sequences(num_blocks, self.alone))
        per_request = self.of(num_samples, num_samples)
        requests, rest = divmod(max(0, num_blocks - 1), per_request)
        more = max(0, (rest - self.shared) // (self.alone - self.shared)) if self.alone > self.shared else 0
        return requests * num_samples + min(more, num_samples - 1)


def trace_blocks(
    layout: Layout, args: ResolvedArgs, num_tokens: int, prompt_tokens: int, num_samples: int
) -> TraceBlocks:
    """Blocks that one decoding trace of `num_tokens` tokens holds, over all groups."""
    alone = int(layout.resident_blocks(num_tokens))
    if num_samples == 1 or not args.enable_prefix_caching:
        return TraceBlocks(alone, 0)
    growing = [g.block_tokens for g in layout.groups if g.kind.is_growing]
    return TraceBlocks(alone, sum(int(shared_blocks(prompt_tokens, size, "vllm")) for size in growing))
