"""Kernels and exchanges that nobody measured: timed as the default's, and the printed range says so; micro-batches."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.step import MicroBatches, StepShape

QWEN, MOE = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"
SPREAD: dict[str, Any] = {
    "enable_expert_parallel": True,
    "data_parallel_size": 8,
    "all2all_backend": "deepep_low_latency",
}


def times(model: str = QWEN, gpu: str = "h200", **flags: Any) -> StepTimes:
    return make_step_times(load_model(model), get_gpu(gpu), EngineArgs(max_num_seqs=256, **flags))


def decode(found: StepTimes, num: int) -> int:
    return found.step.ticks(StepShape(num, num, 1000 * num))


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        (MOE, {"moe_backend": "triton"}, "--moe-backend triton: timed as the default's"),
        (MOE, {"kernel_config": {"moe_backend": "triton"}}, "--moe-backend triton: timed as the default's"),
        (QWEN, {"quantization": "fp8", "linear_backend": "marlin"}, "--linear-backend marlin: timed as"),
        (QWEN, {"attention_backend": "FLEX_ATTENTION"}, "--attention-backend FLEX_ATTENTION: timed as"),
        (
            QWEN,
            {"attention_config": {"flash_attn_version": 2}},
            "--attention-config flash_attn_version: timed as",
        ),
        (QWEN, {"kernel_config": {"enable_flashinfer_autotune": False}}, "enable_flashinfer_autotune off"),
        (
            "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
            {"mamba_backend": "flashinfer"},
            "--mamba-backend flashinfer: timed as",
        ),
    ],
)
def test_other_kernels_are_in_the_printed_range(model: str, flags: dict[str, Any], words: str) -> None:
    plain, other = times(model), times(model, **flags)
    assert words in str(other.doubt)
    assert other.doubt.low < plain.doubt.low
    assert other.doubt.high > plain.doubt.high
    assert other.doubt.prompt_high > plain.doubt.prompt_high


@pytest.mark.parametrize(
    "flags",
    [
        {"moe_backend": "triton"},
        {"linear_backend": "marlin"},
        {"attention_backend": "FLASH_ATTN"},
        {"attention_config": {"backend": "auto"}},
        {"mamba_backend": "flashinfer"},
        {"disable_custom_all_reduce": True},
        {"all2all_backend": "deepep_low_latency"},
        {"dcp_comm_backend": "a2a"},
        {"sparse_indexer_topk_backend": "torch"},
        {"enable_dbo": True},
    ],
)
def test_flags_that_reach_no_kernel_of_the_model_say_nothing(flags: dict[str, Any]) -> None:
    """Of a dense model of attention on one card, whose own attention on Hopper is FlashAttention."""
    assert times(**flags).doubt == times().doubt
    assert decode(times(**flags), 64) == decode(times(), 64)


def test_sums_by_nccl_are_between_the_quicker_one_and_two_of_its_passes() -> None:
    flags = {"tensor_parallel_size": 8}
    plain, nccl = times(**flags), times(**flags, disable_custom_all_reduce=True)
    assert decode(plain, 1) == decode(nccl, 1)
    assert nccl.doubt.low == plain.doubt.low
    assert 1.05 < nccl.doubt.high / plain.doubt.high < 3
    assert "the quicker of vLLM's all-reduce and NCCL's" in str(nccl.doubt)


def test_exchanges_of_own_kernels_are_timed_as_gathers_with_a_range() -> None:
    plain = times(MOE, **SPREAD | {"all2all_backend": "allgather_reducescatter"})
    low = times(MOE, **SPREAD)
    assert decode(plain, 64) == decode(low, 64)
    assert low.doubt.low <= plain.doubt.low
    assert low.doubt.high > plain.doubt.high
    assert "--all2all-backend deepep_low_latency: timed as all-gather and reduce-scatter" in str(low.doubt)


def test_long_steps_are_split_and_hide_exchanges() -> None:
    """Decodes from 32 tokens on, others from 512; what is read twice costs, what is exchanged meanwhile is saved."""
    whole, split = times(MOE, **SPREAD), times(MOE, **SPREAD, enable_dbo=True)
    assert split.time.costs.micro == MicroBatches(2, 32, 512)
    assert decode(split, 31) == decode(whole, 31)
    assert decode(split, 32) != decode(whole, 32)
    prompts = StepShape(511, 0, 0, 511, 1, 1e5), StepShape(8192, 0, 0, 8192, 4, 8e6)
    assert split.step.ticks(prompts[0]) == whole.step.ticks(prompts[0])
    assert split.step.ticks(prompts[1]) < whole.step.ticks(prompts[1])


def test_what_is_hidden_is_never_more_than_the_work_or_all_but_one_part() -> None:
    from dataclasses import replace

    from kvplan.timing.step import ModelStepTime

    found = times(MOE, **SPREAD, enable_dbo=True)
    shape = StepShape(4096, 0, 0, 4096, 2, 4e6)
    none = found.time.costs.micro._replace(overlap=0.0)
    shown = ModelStepTime(found.time.work, replace(found.time.costs, micro=none)).seconds(shape)
    gathers = found.time.work.gathers
    assert gathers is not None
    part = found.time.costs.gather(2048 * gathers.num_ranks * gathers.token_bytes)
    hidden = shown - found.time.seconds(shape)
    assert 0 < hidden <= 2.0 * gathers.num_layers * part * 1.000001
    assert "2 micro-batches: exchanges hidden as far as there is work" in str(found.doubt)
    assert found.doubt.high > times(MOE, **SPREAD).doubt.high


def test_split_steps_at_once_are_those_of_each() -> None:
    import numpy as np

    time = times(MOE, **SPREAD, enable_dbo=True).time
    shapes = [
        StepShape(n, n - k, 1000 * (n - k), k, 1 if k else 0, 9.0 * k) for n in (5, 40, 700) for k in (0, 4)
    ]
    whole = StepShape(*(np.array(part) for part in zip(*shapes, strict=True)))
    assert np.allclose(time.seconds(whole), [float(time.seconds(shape)) for shape in shapes])
