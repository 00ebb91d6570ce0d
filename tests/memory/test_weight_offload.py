"""Weights in host memory, as plans say it: the card's share, the host's, what vLLM refuses."""

from __future__ import annotations

import pytest

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate

MODEL = "Qwen/Qwen3-32B"


def test_the_pool_grows_by_what_leaves_the_card() -> None:
    """KV gets what the weights give up; without it this model does not start on that card."""
    assert estimate(MODEL, "l40s").refusal is not None
    plans = [estimate(MODEL, "l40s", cpu_offload_gb=gib) for gib in (30, 40)]
    weights, pools = ([getattr(p.budget, row).size.value for p in plans] for row in ("weights", "kv"))
    assert 9.5 * GiB < weights[0] - weights[1] < 10.5 * GiB
    assert pools[1] - pools[0] == weights[0] - weights[1]
    assert 40 * GiB <= plans[1].weights_in_host_bytes < 40.5 * GiB
    assert plans[1].to_dict()["weights_in_host_bytes"] == plans[1].weights_in_host_bytes
    assert "Host memory: 40." in plans[1].text()
    assert "--cpu-offload-gb 40.0" in plans[1].serve_command


def test_the_host_holds_what_all_ranks_give_it() -> None:
    """Bytes are per GPU: two ranks give twice as much."""
    one, two = (
        estimate(MODEL, "h100", cpu_offload_gb=10, tensor_parallel_size=tp).weights_in_host_bytes
        for tp in (1, 2)
    )
    assert two / one == pytest.approx(2, rel=0.02)


def test_buffers_stay_on_the_card() -> None:
    """Copied layers leave the card but for their buffers, as many as are copied ahead."""
    plain = estimate(MODEL, "h100").budget.weights.size.value
    ahead = [
        estimate(MODEL, "h100", offload_group_size=8, offload_prefetch_step=step).budget.weights.size.value
        for step in (1, 2)
    ]
    layer = ahead[1] - ahead[0]
    assert plain - ahead[0] == pytest.approx(7 * layer, rel=0.01)


def test_a_model_that_no_offloader_sees_stays() -> None:
    """SmolLM3 is one of transformers' own classes in vLLM 0.32: its layers are not wrapped, and the plan says so."""
    plan = estimate("HuggingFaceTB/SmolLM3-3B", "l40s", cpu_offload_gb=4)
    assert plan.budget.weights.size == estimate("HuggingFaceTB/SmolLM3-3B", "l40s").budget.weights.size
    assert "No weights lie in host memory" in plan.text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"offload_group_size": 2, "offload_num_in_group": 3}, "must be at most --offload-group-size 2"),
        ({"offload_backend": "prefetch"}, "must be at most --offload-group-size 0"),
        ({"offload_group_size": 2, "offload_prefetch_step": 0}, "must be at least 1"),
        (
            {"offload_backend": "uva", "offload_group_size": 2, "offload_prefetch_step": 0},
            "must be at least 1",
        ),
        ({"offload_group_size": 2, "model": "openai/whisper-large-v3"}, "one stack of layers"),
    ],
)
def test_what_vllm_refuses(flags: dict[str, object], said: str) -> None:
    """`config/offload.py: validate_offload_config`, and the assertion of the prefetching offloader."""
    told = dict(flags)
    model = str(told.pop("model", MODEL))
    with pytest.raises(KvplanError, match=said):
        estimate(model, "h200", **told)


def test_a_backend_is_picked_by_what_is_stated() -> None:
    """auto: prefetch before uva; a named one leaves the other's flags aside."""
    both = {"cpu_offload_gb": 5.0, "offload_group_size": 8}
    copied = estimate(MODEL, "h100", **both).weights_in_host_bytes
    assert copied == estimate(MODEL, "h100", offload_group_size=8).weights_in_host_bytes
    read = estimate(MODEL, "h100", offload_backend="uva", **both).weights_in_host_bytes
    assert read == estimate(MODEL, "h100", cpu_offload_gb=5).weights_in_host_bytes
    assert estimate(MODEL, "h100", offload_backend="uva").weights_in_host_bytes == 0


def test_pasted_commands_act() -> None:
    """All seven flags are read."""
    told = read_command(
        "vllm serve m --cpu-offload-gb 10 --cpu-offload-params experts w2_weight --offload-backend uva"
        " --offload-group-size 4 --offload-num-in-group 2 --offload-prefetch-step 3 --offload-params mlp"
    )
    assert not told.not_planned
    assert not told.no_effect
    assert told.args == EngineArgs(
        cpu_offload_gb=10,
        cpu_offload_params=("experts", "w2_weight"),
        offload_backend="uva",
        offload_group_size=4,
        offload_num_in_group=2,
        offload_prefetch_step=3,
        offload_params=("mlp",),
    )
