"""Attention backends that vLLM's registry takes by name alone: their layouts and refusals are vLLM's.

The fixture: vLLM 0.32.0's own planner, model classes and backends, as for `test_layout.py`; packages that a backend
needs (b12x, tokenspeed-mla, hpc, FlashInfer 0.6.18) count as installed.
"""

from __future__ import annotations

import json

import pytest
import test_layout
from places import FIXTURES
from test_layout import Case, comparable

from kvplan import estimate
from kvplan.ground.errors import KvplanError

CASES: list[tuple[Case, Case]] = json.loads((FIXTURES / "backends_vllm_0.32.json").read_text())
CARDS = test_layout.CARDS | {"RTX": (12, 0)}


@pytest.mark.parametrize(("case", "golden"), CASES, ids=lambda x: x.get("id", ""))
def test_equals_vllm(case: Case, golden: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_layout, "CARDS", CARDS)
    assert comparable(case, test_layout.answer(case)) == comparable(case, golden)


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ("B12X", "needs .*64 or 128"),
        ("FLASHINFER_MLA_SPARSE_DSV4", "how it lays out KV is not planned"),
        ("CPU_MLA", "serves no layer with KV on CUDA"),
        ("TOKENSPEED", "did you mean TOKENSPEED_MLA"),
    ],
)
def test_what_is_refused_says_why(backend: str, said: str) -> None:
    with pytest.raises(KvplanError, match=said):
        estimate("Qwen/Qwen3-8B", "rtx-5090", attention_backend=backend)
