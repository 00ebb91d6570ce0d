"""What the simulated scheduler is told of the plan's blocks holds as many tokens as the plan says."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.scenario.schema import Deployment
from kvplan.simulation.deploy import set_up
from kvplan.timing.step import StepShape

R1, QWEN3, KIMI = "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3-8B", "moonshotai/Kimi-Linear-48B-A3B-Instruct"
EIGHT = {"tensor_parallel_size": 8, "max_model_len": 32768}


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        (QWEN3, {}),
        (QWEN3, {"block_size": 32}),
        (QWEN3, {"tensor_parallel_size": 16, "decode_context_parallel_size": 2}),
        (R1, EIGHT),
        (R1, EIGHT | {"decode_context_parallel_size": 2}),
        (R1, EIGHT | {"decode_context_parallel_size": 8}),
    ],
)
def test_a_pool_of_one_table_holds_the_tokens_that_the_engine_prints(
    model: str, flags: dict[str, Any]
) -> None:
    config = set_up(Deployment(model=model, gpu="h200", engine=EngineArgs(**flags))).config
    plan = estimate(model, "h200", EngineArgs(**flags))
    assert plan.layout is not None
    assert config.num_gpu_blocks * config.block_size == plan.layout.kv_cache_size_tokens


def test_ranks_that_split_contexts_read_a_part_each_and_exchange_outputs() -> None:
    """Long contexts take less time, a short one the exchange of each layer more; prompts take what they took."""

    def ticks(dcp: int, shape: StepShape) -> int:
        flags = EngineArgs(**EIGHT, decode_context_parallel_size=dcp)
        return set_up(Deployment(model=R1, gpu="h200", engine=flags)).step_time.ticks(shape)

    long, short = StepShape(64, 64, 64 * 32000), StepShape(1, 1, 100)
    prompt = StepShape(4096, 0, 0, 4096, 1, 4096 * 2048)
    assert ticks(8, long) < ticks(2, long) < ticks(1, long)
    assert ticks(1, short) < ticks(8, short)
    assert ticks(8, prompt) == pytest.approx(ticks(1, prompt), rel=0.01)


def test_states_beside_split_contexts_are_refused_with_prefix_caching() -> None:
    flags: dict[str, Any] = EIGHT | {"decode_context_parallel_size": 8}
    asked = Deployment(model=KIMI, gpu="h200", engine=EngineArgs(**flags, enable_prefix_caching=False))
    assert set_up(asked).config.groups
    with pytest.raises(KvplanError, match="no-enable-prefix-caching simulates"):
        set_up(Deployment(model=KIMI, gpu="h200", engine=EngineArgs(**flags)))


def test_bytes_of_a_token_are_a_rank_s_part_of_it() -> None:
    """What passes from prefill to decode engines; and a host tier of 256 GiB holds as many tokens either way."""

    def told(dcp: int) -> tuple[float, int]:
        flags = EngineArgs(**EIGHT, decode_context_parallel_size=dcp)
        tier = estimate(R1, "h200", flags.model_copy(update={"kv_offloading_size": 256.0})).offload
        assert tier is not None
        return set_up(Deployment(model=R1, gpu="h200", engine=flags)).kv_bytes_per_token, tier.tokens.low

    (one, held), (eight, held_by_eight) = told(1), told(8)
    assert eight * 8 == one
    assert held_by_eight == pytest.approx(held, rel=0.01)
