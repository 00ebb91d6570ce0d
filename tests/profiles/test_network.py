"""Ranks over several machines (`--nnodes`): which groups cross the network, what that costs, what vLLM refuses."""

from __future__ import annotations

from typing import Any

import pytest

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.engines.nodes import find_spread
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.memory.forward import estimate
from kvplan.models.load import load_model
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.links import LINKS
from kvplan.timing.step import StepShape

MODEL, MOE = "meta-llama/Llama-3.1-70B-Instruct", "deepseek-ai/DeepSeek-V3"
STEP = StepShape(64, 64, 64 * 1000)


def crossing(**flags: Any) -> tuple[bool, bool, int]:
    spread = find_spread(EngineArgs(**flags), moe=True)
    return spread.sums_cross, spread.exchanges_cross, spread.stages_cross


def times(model: str = MODEL, **flags: Any) -> StepTimes:
    return make_step_times(load_model(model), get_gpu("h100"), EngineArgs(**flags))


def test_groups_lie_on_machines_in_order() -> None:
    """Tensor-parallel ranks side by side, stages behind each other, then replicas (`initialize_model_parallel`)."""
    tp, pp, dp = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    assert crossing(**{tp: 8}) == (False, False, 0)
    assert crossing(**{tp: 16}, nnodes=2) == (True, False, 0)
    assert crossing(**{tp: 8, pp: 2}, nnodes=2) == (False, False, 1)
    assert crossing(**{tp: 4, pp: 4}, nnodes=2) == (False, False, 1)
    assert crossing(**{tp: 4, pp: 4}, nnodes=4) == (False, False, 3)
    assert crossing(**{tp: 8, dp: 2}, nnodes=2) == (False, True, 0)
    assert crossing(**{tp: 16, dp: 2}, nnodes=4) == (True, True, 0)


def test_sums_over_the_network_take_longer_and_say_how_unsure_they_are() -> None:
    """Eight ranks of two machines: slower than of one; on one machine nothing changes."""
    one, two = times(tensor_parallel_size=8), times(tensor_parallel_size=8, nnodes=2)
    assert two.time.ticks(STEP) > one.time.ticks(STEP)
    assert "between machines 40 GB/s a GPU, assumed" in str(two.doubt)
    assert "between machines" not in str(one.doubt)
    four = times(tensor_parallel_size=8, nnodes=4)
    assert four.time.ticks(STEP) > two.time.ticks(STEP)


def test_only_what_crosses_is_over_the_network() -> None:
    """Stages on machines of their own sum as before; their hand-over is a doubt. Experts' exchanges cost more."""
    one, two = (
        times(tensor_parallel_size=4, pipeline_parallel_size=2, **more) for more in ({}, {"nnodes": 2})
    )
    assert two.time.ticks(STEP) == one.time.ticks(STEP)
    assert "hand-overs are not timed" in str(two.doubt)
    flags: dict[str, Any] = {
        "tensor_parallel_size": 4,
        "data_parallel_size": 4,
        "enable_expert_parallel": True,
    }
    near, far = times(MOE, **flags), times(MOE, **flags, nnodes=2)
    assert far.time.ticks(STEP) > near.time.ticks(STEP)
    assert far.time.costs.reduce(1e6) == near.time.costs.reduce(1e6)


def test_the_plan_says_what_crosses_and_what_a_machine_holds() -> None:
    plan = estimate(MODEL, "h100", tensor_parallel_size=16, nnodes=2, kv_offloading_size=64)
    assert (
        "Over 2 machines of 8 GPUs: tensor-parallel sums cross the network. Host memory of each: 32.00"
        in str(plan)
    )
    assert "--nnodes 2" in plan.serve_command
    assert plan.to_dict()["inputs"]["num_machines"] == 2
    assert plan.budget == estimate(MODEL, "h100", tensor_parallel_size=16, kv_offloading_size=64).budget


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ({"tensor_parallel_size": 4, "nnodes": 3}, "does not divide the 4 ranks"),
        ({"tensor_parallel_size": 2, "data_parallel_size": 3, "nnodes": 2}, "not divisible by 3"),
    ],
)
def test_what_vllm_refuses(flags: dict[str, Any], why: str) -> None:
    """vLLM 0.32 `engine/arg_utils.py`, `config/parallel.py: nnodes_within_dp`."""
    with pytest.raises(KvplanError, match=why):
        estimate("Qwen/Qwen3-30B-A3B", "h100", **flags)


def test_a_pasted_command_of_two_machines() -> None:
    base = "vllm serve m -tp 16 --nnodes 2 --master-addr 10.0.0.1"
    told = read_command(f"{base} --node-rank 1 --headless")
    assert (told.args.nnodes, told.args.node_rank, told.args.headless, told.not_planned) == (2, 1, True, ())
    with pytest.raises(KvplanError, match="ray"):
        read_command(f"{base} --distributed-executor-backend ray")


def test_replicas_on_machines_gather_there_and_over_the_network() -> None:
    """Each of eight GPUs gets its share by its own network card, the rest from its neighbours."""
    flags: dict[str, Any] = {"data_parallel_size": 16, "enable_expert_parallel": True}
    near, far = times(MOE, **flags), times(MOE, **flags, data_parallel_size_local=8)
    alone = times(MOE, **flags, data_parallel_size_local=1)
    assert near.time.ticks(STEP) < far.time.ticks(STEP) < alone.time.ticks(STEP)
    moved = 1e8
    gather = LINKS["ib"].gather(2)(moved / 8) + near.profile.timing.surfaces["all_gather.8"](moved)  # type: ignore[union-attr]
    assert far.time.costs.gather(moved) == pytest.approx(gather)
    assert alone.time.costs.gather(moved) == pytest.approx(LINKS["ib"].gather(16)(moved))
    assert "between machines 40 GB/s a GPU, assumed" in str(far.doubt)
    assert times(MODEL, data_parallel_size=16, data_parallel_size_local=8).time.ticks(STEP) == pytest.approx(
        times(MODEL).time.ticks(STEP)
    )


def test_racks_of_nvlink_need_no_network() -> None:
    """Machines of four GB200 in one rack exchange over NVLink; beyond a rack's 72 GPUs over the network."""
    flags: dict[str, Any] = {"enable_expert_parallel": True, "data_parallel_size_local": 4}

    def step(gpu: str, replicas: int) -> StepTimes:
        args = EngineArgs(data_parallel_size=replicas, **flags)
        return make_step_times(load_model(MOE), get_gpu(gpu), args)

    inside, beyond = step("gb200", 64), step("gb200", 128)
    assert any("machines of one rack, assumed" in note for note in inside.notes)
    assert any("exchanges of experts' ranks between machines: ib at 40 GB/s" in n for n in beyond.notes)
    assert any("between machines: ib at 40 GB/s" in note for note in step("b200", 64).notes)
    moved = 1e8
    assert inside.time.costs.gather(moved) < 0.5 * step("b200", 64).time.costs.gather(moved)


def test_exchanges_over_nvlink_alone_are_told_of() -> None:
    plan = estimate(
        MOE,
        "gb200",
        data_parallel_size=16,
        data_parallel_size_local=4,
        enable_expert_parallel=True,
        all2all_backend="flashinfer_nvlink_one_sided",
    )
    assert "--all2all-backend flashinfer_nvlink_one_sided needs NVLink between them" in str(plan)
