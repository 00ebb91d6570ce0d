"""An encoder in an engine of its own: consumers keep a buffer, producers have no KV, and vLLM's refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate

SEES, TEXT = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-8B"
SMALL: dict[str, Any] = {"max_model_len": 16384, "max_num_seqs": 16}


def told(role: str, connector: str = "ECMooncakeConnector", **more: Any) -> dict[str, Any]:
    return {"ec_transfer_config": json.dumps({"ec_role": role, "ec_connector": connector, **more})}


def pool(**flags: Any) -> int:
    return estimate(SEES, "h100", EngineArgs(**SMALL, **flags)).budget.kv.size.value


def test_mooncakes_consumers_register_a_buffer() -> None:
    """1e9 bytes unless stated (`ECTransferConfig.ec_buffer_size`), out of the pool; none in host memory."""
    usual = pool()
    assert usual - pool(**told("ec_consumer")) == 1_000_000_000
    assert usual - pool(**told("ec_both", ec_buffer_size=2.5e8)) == 250_000_000
    assert pool(**told("ec_consumer", ec_buffer_device="cpu")) == usual


def test_the_first_stage_alone_receives() -> None:
    """Later ones take no embeddings (`mooncake/worker.py: _is_receiving_rank`); each rank of the first does."""
    consumer = told("ec_consumer")
    for ranks in ({"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2}):
        plans = [estimate(SEES, "h100", EngineArgs(**SMALL, **ranks, **more)) for more in ({}, consumer)]
        without, with_it = (plan.budget for plan in plans)
        assert without.kv.size.value - with_it.kv.size.value <= 1_000_000_000
        assert any(row.name == "ec_buffer" for row in with_it.colocated)


def test_other_connectors_take_nothing_of_a_card() -> None:
    usual = pool()
    assert pool(**told("ec_both", "ECExampleConnector")) == usual
    cached = told("ec_both", "ECCPUConnector", ec_connector_extra_config={"ec_cpu_bytes": 2**33})
    assert pool(**cached) == usual


@pytest.mark.parametrize("flags", [told("ec_producer", "ECExampleConnector"), {"mm_encoder_only": True}])
def test_an_encoder_alone_is_refused_with_what_it_takes(flags: dict[str, Any]) -> None:
    """The 676 million parameters of Qwen2.5-VL's tower (vLLM's class, test_architectures.py) in 16 bits: 1.26 GiB."""
    with pytest.raises(
        KvplanError, match=r"keeps no KV.* of each GPU's 79.18 GiB the tower's weights take 1.26, a b"
    ):
        estimate(SEES, "h100", EngineArgs(**SMALL, **flags))


@pytest.mark.parametrize(
    ("model", "flags", "words"),
    [
        (TEXT, told("ec_producer"), "an ec_producer needs a multimodal model"),
        (SEES, told("ec_producer") | {"data_parallel_size": 2}, "producers require data_parallel_size 1"),
        (SEES, told("ec_both") | {"tensor_parallel_size": 2}, "producers require tensor_parallel_size 1"),
        (SEES, {"mm_encoder_only": True, "data_parallel_size": 2}, "does not support --data-parallel-size"),
        (SEES, told("ec_both", "ECCPUConnector"), "ec_cpu_bytes must be specified"),
        (
            SEES,
            told("ec_both", "ECCPUConnector", ec_connector_extra_config={"ec_cpu_bytes": 1})
            | {"env": "VLLM_USE_V2_MODEL_RUNNER=0"},
            "needs vLLM's second model runner",
        ),
        (SEES, told("ec_consumer", ec_buffer_size=0.5), "ec_buffer_size to be a positive integer"),
        (SEES, told("ec_both", ec_connector_extra_config={"cross_encoder_cache": True}), "encoder-only producer"),
        (SEES, told("ec_consumer", "Foo"), "ec_connector Foo is none of vLLM's; it has ECExampleConnector"),
        (SEES, told("ec_consumer", "Foo", ec_connector_module_path="foo"), "code of one's own"),
        (SEES, {"ec_transfer_config": {"ec_connector": "ECExampleConnector"}}, "states no ec_role"),
        (SEES, {"ec_transfer_config": {"ec_role": "ec_consumer"}}, "names no ec_connector"),
        (SEES, told("both"), "must be 'ec_producer', 'ec_consumer' or 'ec_both'"),
        (SEES, told("ec_both", port=3), "port: Extra inputs are not permitted"),
        (SEES, {"mm_processor_device": "cuda"}, "runs the language model too"),
        (SEES, {"mm_processor_kwargs": {"device": "cuda:0"}}, "--mm-processor-device cuda:0: this engine"),
        (SEES, {"mm_processor_device": "xpu"}, "must be 'auto', 'cpu' or 'cuda'"),
    ],
)  # fmt: skip
def test_what_vllm_refuses(model: str, flags: dict[str, Any], words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        estimate(model, "h100", **SMALL, **flags)


def test_a_processor_on_the_cpu_and_text_models_are_as_ever() -> None:
    """`device` of the processor's own options wins; text models read none of these flags."""
    assert pool(mm_processor_device="cuda", mm_processor_kwargs='{"device": "cpu"}') == pool()
    text = estimate(TEXT, "h100", mm_processor_device="cuda", mm_encoder_only=True)
    assert text.budget == estimate(TEXT, "h100").budget


def test_connectors_of_ones_own_are_listed() -> None:
    own = json.dumps({"ec_connector": "Mine", "ec_role": "ec_both", "ec_connector_module_path": "mine"})
    told = read_command(["vllm", "serve", SEES, "--ec-transfer-config", own])
    assert told.not_planned == ("--ec-transfer-config (connector Mine, code of one's own)",)
    assert told.args.ec_transfer_config is None
