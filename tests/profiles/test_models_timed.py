"""Whatever can be planned can be timed: a model of each bundled architecture, on each way of telling a step's time."""

from __future__ import annotations

import warnings

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import bundled_models, load_model
from kvplan.profiles.step_times import make_step_times
from kvplan.timing.step import StepShape

ARCHITECTURES = {load_model(name).architecture: name for name in bundled_models()}


@pytest.mark.parametrize(
    ("card", "engine"), [("h100", "vllm@0.32"), ("b200", "vllm@0.11"), ("mi300x", "sglang")]
)
def test_every_architecture_is_timed(card: str, engine: str) -> None:
    args = EngineArgs.model_validate({"max_num_seqs": 64})
    for name in ARCHITECTURES.values():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            time = make_step_times(load_model(name), get_gpu(card), args, engine=engine).time
            decode = time.ticks(StepShape(8, 8, 8 * 20_000))
            mixed = time.ticks(StepShape(2_056, 8, 8 * 20_000, 2_048, 1, 2_048 * 1_024.0))
        assert 0 < decode < mixed, name
