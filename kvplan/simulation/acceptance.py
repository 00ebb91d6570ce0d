"""Which drafts are right: drawn by request and token, so that a request's luck does not hang on who else runs."""

from __future__ import annotations

from kvplan.schedulers.protocol import AcceptDrafts
from kvplan.schedulers.request import Request
from kvplan.simulation.sim_request import SimRequest

_MASK, _GOLDEN = (1 << 64) - 1, 0x9E3779B97F4A7C15


def accept_drafts(rate: float | tuple[float, ...], stream: tuple[int, ...]) -> AcceptDrafts:
    """How many drafts are right, each with its position's chance, up to the first wrong one; the last rate holds on."""
    rates = (rate,) if isinstance(rate, float) else rate

    def accept(request: Request, num_drafts: int) -> int:
        assert isinstance(request, SimRequest)
        draws = uniforms(stream, request.row, request.num_output_tokens, num_drafts)
        chances = (rates[min(i, len(rates) - 1)] for i in range(num_drafts))
        wrong = (i for i, (draw, chance) in enumerate(zip(draws, chances, strict=True)) if draw >= chance)
        return next(wrong, num_drafts)

    return accept


def uniforms(stream: tuple[int, ...], row: int, token: int, count: int) -> list[float]:
    """Uniform numbers of a request at a token: SplitMix64 (Steele, Lea and Flood, 2014) of all that names them.

    >>> uniforms((0,), 1, 7, 2) == uniforms((0,), 1, 7, 3)[:2]
    True
    """
    state = 0
    for part in (*stream, row, token):
        state = _mixed((state ^ part) & _MASK)
    return [(_mixed((state + i * _GOLDEN) & _MASK) >> 11) * 2.0**-53 for i in range(count)]


def _mixed(state: int) -> int:
    state = (state + _GOLDEN) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return state ^ (state >> 31)
