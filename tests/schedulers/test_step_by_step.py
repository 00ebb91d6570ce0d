"""What a driver is told in every step: drafts that are placeholders are never right, and when blocks run out."""

from __future__ import annotations

import numpy as np
import pytest

from kvplan.ground.content import Segment
from kvplan.schedulers.protocol import Counts
from kvplan.schedulers.request import Request
from kvplan.schedulers.step_by_step import StepByStep
from kvplan.schedulers.vllm.config import EngineConfig


class AllRight:
    """Drafts that are all right."""

    def __call__(self, request: Request, num_drafts: int) -> int:
        return num_drafts

    def runs(self, request: Request, first: int, count: int, num_drafts: int) -> Counts:
        return np.full(count, num_drafts)


def drafting(**sizes: int) -> EngineConfig:
    return EngineConfig(
        block_size=4, max_model_len=64, num_speculative_tokens=2, spec_method="ngram", **sizes
    )


def test_the_padding_of_an_admission_is_never_right() -> None:
    """An admission of one token is as large as a decode, but its drafts are no drafts: it samples one token."""
    engine = StepByStep(drafting(num_gpu_blocks=40), AllRight())
    for name in ("first", "again"):
        request = Request(name, (Segment("same", 9),), 9)
        engine.add_request(request)
        step = engine.schedule()
        engine.update_from_output()
        assert request.num_output_tokens == 1
    assert [(chunk.num_tokens, chunk.num_computed_tokens) for chunk in step.chunks] == [(3, 8)]
    engine.schedule()
    engine.update_from_output()
    assert request.num_output_tokens == 4


@pytest.mark.parametrize("num_blocks", [9, 13, 17])
def test_short_of_blocks(num_blocks: int) -> None:
    """Somebody is preempted in just the decode steps that need more blocks than there are, drafts' slots counted."""
    engine = StepByStep(drafting(num_gpu_blocks=num_blocks), AllRight())
    for i in range(4):
        engine.add_request(Request(str(i), (Segment(str(i), 5 + i),), 20))
    told: list[bool] = []
    seen: list[bool] = []
    while engine.has_requests():
        short = engine.is_short
        step = engine.schedule()
        if not step.chunks:
            told.append(short)
            seen.append(bool(step.preempted))
        engine.update_from_output()
    assert told == seen
    assert any(seen)
