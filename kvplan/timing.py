"""How long one engine step takes: `StepShape` in, time out. Pure; knows no engine, no clock, no memory.

A roofline from model and GPU, or a fitted profile, answers the same two questions.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StepShape(NamedTuple):
    """All that a step's duration may depend on; every field is a number or an array of one shape.

    The same tuple is the fit's design-matrix row and the simulator's question.
    """

    num_tokens: int
    """Tokens computed in the step, prefill and decode."""
    num_decodes: int
    """Sequences that compute one token each (or 1 + drafts)."""
    decode_context: int
    """Sum over decoding sequences of the tokens attended to."""
    num_prefill_tokens: int = 0
    """Tokens of prompt chunks in the step."""
    num_prefills: int = 0
    """Prompts with a chunk in the step."""
    prefill_attention: float = 0.0
    """Sum over chunks of q * (past + q / 2): the query-key pairs that causal attention visits."""


class StepTime(Protocol):
    """What the simulator asks. Integer ticks (picoseconds), so that leaping and stepping agree exactly."""

    def ticks(self, shape: StepShape) -> int:
        """Duration of one step of this shape."""
        ...

    def decode_line(self, num_decodes: int, decode_context: int) -> tuple[int, int, int]:
        """Return (a, b, limit): `ticks` of a pure decode step is exactly `a + b * context` for every
        context from `decode_context` up to, not including, `limit`."""
        ...
