"""Asks vLLM itself which attention each tower's layers are made of, and packs the answers.

    python tests/models/make_tower_attention.py [NAME ...]

Writes `tests/fixtures/tower_attention_vllm_0.32.json`: for each case of `architectures_vllm_0.32.json.xz` with a tower
the layers whose attention is `MMEncoderAttention`, which alone heeds --mm-encoder-attn-backend: the class that
holds it, heads and their size, whether FlashInfer's kernels get there the lengths and offsets of items that they need,
how many. Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import inspect
import json
import lzma
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta

from kvplan.models.towers.rows import DECLARED
from kvplan.models.vision import has_tower

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
WRITTEN = FIXTURES / "tower_attention_vllm_0.32.json"


LAID_OUT = ("maybe_compute_seq_lens", "maybe_recompute_cu_seqlens")


def attention(model: Any) -> list[list[Any]]:
    """[class, heads, size of a head, whether FlashInfer's kernels get what they need, layers] of a model's towers."""
    from vllm.model_executor.layers.attention import MMEncoderAttention
    from vllm.model_executor.models.interfaces import supports_multimodal

    modules, found = dict(model.named_modules()), Counter[tuple[Any, ...]]()
    for name, part in modules.items():
        if isinstance(part, MMEncoderAttention):
            steps = name.split(".")
            above = [modules[".".join(steps[:n])] for n in range(len(steps))]
            passed = "sequence_lengths=" in inspect.getsource(type(above[-1]).forward)
            tower = next(one for one in above if not supports_multimodal(one))
            told = passed and lays_out(type(tower))
            found[type(above[-1]).__name__, part.num_heads, part.head_size, told] += 1
    return [[*key, count] for key, count in sorted(found.items())]


@cache
def lays_out(kind: type) -> bool:
    """Whether the file of a tower's class, or of one that it is made from, makes lengths and offsets for FlashInfer."""
    files = {inspect.getsourcefile(one) for one in kind.__mro__ if one.__module__.startswith("vllm.")}
    return any(all(call in Path(file).read_text() for call in LAID_OUT) for file in files if file)


def ask(case: dict[str, Any]) -> list[list[Any]] | str:
    """What vLLM builds; its error where it does not start."""
    try:
        told = {key: case.get(key) for key in ("draft", "beside")}
        _, model = vllm_meta.build(
            copy.deepcopy(case["config"]),
            1,
            device=case.get("device", "meta"),
            **told,
            **case.get("flags", {}),
        )
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return f"{type(error).__name__}: {str(error)[:120]}"
    return attention(model)


def main(*names: str) -> None:
    cases = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    kept = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    vllm_meta.platform()
    for name, case in cases.items():
        architecture = case["config"]["architectures"][0]
        towered = architecture in DECLARED or has_tower(architecture)
        if case.get("draft") or not towered or (names and name not in names):
            continue
        kept[name] = ask(case)
        print(name, kept[name], flush=True)
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(kept.items()))
    WRITTEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
