"""--disable-sliding-window: full attention on contexts up to the window (vLLM 0.32 `config/model.py`)."""

from __future__ import annotations

import pytest

from kvplan.ground.errors import KvplanError
from kvplan.memory.forward import estimate
from kvplan.models.spec import AttentionKind

GEMMA = "google/gemma-3-27b-it"


def test_all_layers_keep_the_whole_context() -> None:
    off = estimate(GEMMA, "h100", disable_sliding_window=True)
    assert off.max_model_len == 1024
    assert off.layout is not None
    assert {group.kind for group in off.layout.groups} == {AttentionKind.FULL}
    with_windows = estimate(GEMMA, "h100", max_model_len=1024)
    assert with_windows.layout is not None
    assert {group.kind for group in with_windows.layout.groups} == {AttentionKind.FULL, AttentionKind.SLIDING}


def test_no_longer_context_is_taken() -> None:
    with pytest.raises(KvplanError, match="made for 1,024"):
        estimate(GEMMA, "h100", disable_sliding_window=True, max_model_len=8192)


def test_models_without_windows_are_as_before() -> None:
    plain = estimate("Qwen/Qwen3-8B", "h100")
    assert estimate("Qwen/Qwen3-8B", "h100", disable_sliding_window=True).budget == plain.budget
