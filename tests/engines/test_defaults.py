"""Defaults that changed with vLLM 0.28, by its pull requests 51726, 50991 and 49390 (release notes of v0.28.0)."""

from __future__ import annotations

import pytest

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.resolve import resolve
from kvplan.ground.gpu import get_gpu
from kvplan.memory.graphs import engine_graphs
from kvplan.models.load import load_model
from kvplan.profiles.step_times import make_step_times

HYBRID = "Qwen/Qwen3-Next-80B-A3B-Instruct"


@pytest.mark.parametrize(("version", "tokens"), [("vllm@0.27", 8192), ("vllm@0.28", 16384)])
def test_batches_of_cards_of_160_gib(version: str, tokens: int) -> None:
    """A third class of cards, above that of 70 GiB."""
    model = load_model("Qwen/Qwen3-8B")
    assert resolve(EngineArgs(), model, get_gpu("b200"), version).max_num_batched_tokens == tokens
    assert resolve(EngineArgs(), model, get_gpu("h200"), version).max_num_batched_tokens == 8192


@pytest.mark.parametrize(("version", "caching"), [("vllm@0.27", False), ("vllm@0.28", True)])
def test_prefix_caching_of_states(version: str, caching: bool) -> None:
    """Opt-in before; models without states had it on all along."""
    card = get_gpu("h200")
    assert resolve(EngineArgs(), load_model(HYBRID), card, version).enable_prefix_caching is caching
    assert resolve(EngineArgs(), load_model("Qwen/Qwen3-8B"), card, version).enable_prefix_caching is True


@pytest.mark.parametrize(("version", "largest"), [((0, 27), 512), ((0, 28), 1024)])
def test_graphs_of_blackwell(version: tuple[int, int], largest: int) -> None:
    """Of data centres alone, where nobody states sizes; in memory and in step times alike."""
    engine, model, args = EngineVersion("vllm", version), load_model("Qwen/Qwen3-8B"), {"max_num_seqs": 1024}
    blackwell, consumer = (
        resolve(EngineArgs(**args), model, get_gpu(card), str(engine)) for card in ("b200", "rtx-5090")
    )
    assert engine_graphs(model, blackwell, get_gpu("b200"), engine).sizes[-1] == largest
    assert engine_graphs(model, consumer, get_gpu("rtx-5090"), engine).sizes[-1] == 512
    stated = blackwell.model_copy(update={"max_cudagraph_capture_size": 800})
    assert engine_graphs(model, stated, get_gpu("b200"), engine).sizes[-1] == 800
    times = make_step_times(model, get_gpu("b200"), blackwell, engine=engine)
    assert times.time.costs.capture_sizes[-1] == largest
