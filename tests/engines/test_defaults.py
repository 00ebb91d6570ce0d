"""Defaults that changed with vLLM 0.28, by its pull requests 51726 and 50991 (release notes of v0.28.0)."""

from __future__ import annotations

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.engines.resolve import resolve
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model

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
