"""DiffusionGemma: a Gemma 4 that fills canvases of tokens. Figures of vLLM 0.32.0, as in `test_encoder_decoder.py`."""

from __future__ import annotations

import pytest

from kvplan import estimate
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.layout import kv_layout
from kvplan.models.load import load_model
from kvplan.models.weights import heaviest_rank
from kvplan.scenario.schema import Deployment
from kvplan.simulation.deploy import set_up

NAME = "google/diffusiongemma-26B-A4B-it"


@pytest.mark.parametrize(
    ("tp", "weights", "plan"),
    [
        (1, 51676393568, (655360, 32768, 629899)),
        (2, 26440347744, (327680, 65536, 1259798)),
        (8, 7534940256, (163840, 131072, 1798091)),
    ],
)
def test_it_is_planned_as_vllm_plans_it(tp: int, weights: int, plan: tuple[int, ...]) -> None:
    model = load_model(NAME)
    args = EngineArgs(tensor_parallel_size=tp, max_num_batched_tokens=8192, max_num_seqs=256)
    layout, rank = kv_layout(model, args, 20 * GiB), heaviest_rank(model, tensor_parallel_size=tp)
    assert rank.total - rank.rotary == weights
    assert (layout.bytes_per_block, layout.num_blocks, layout.kv_cache_size_tokens) == plan


@pytest.mark.parametrize(("asked", "run"), [(None, 8), (4, 4), (100, 100), (256, 8)])
def test_eight_canvases_run_at_once_unless_fewer_than_128_are_asked_for(asked: int | None, run: int) -> None:
    """vLLM cannot tell 128 and more from its own default (`model_executor/models/config.py`)."""
    assert estimate(NAME, "h200", max_num_seqs=asked).args.max_num_seqs == run


def test_only_its_memory_is_planned_and_only_vllms() -> None:
    with pytest.raises(
        KvplanError, match="steps of diffusion are not timed, so it is planned, not simulated"
    ):
        set_up(Deployment(model=NAME, gpu="h200"))
    with pytest.raises(KvplanError, match="diffusion, planned as vLLM runs it"):
        estimate(NAME, "h200", engine="sglang")
