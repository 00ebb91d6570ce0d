"""Asks vLLM's planner what orders of a pool (`VLLM_KV_CACHE_LAYOUT`) it takes, and what they change.

    python tests/models/make_layouts.py

Writes `tests/fixtures/layouts_vllm_0.32.json`: for the first case of each architecture in `make_architectures.py`'s
fixture and each order: the plan of 20 GiB where it is another than the usual one's, null where it is not, or the
refusal. Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE, KV_BYTES
from switches import first_cases

LAYOUTS = FIXTURE.with_name("layouts_vllm_0.32.json")
NAME = "VLLM_KV_CACHE_LAYOUT"
ORDERS = ("LBNHC", "LBHNC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
KEPT = ("bytes_per_block", "num_blocks", "tokens")


def ask(config: Any, order: str | None) -> dict[str, Any] | str:
    """Its plan, or its refusal."""
    os.environ.pop(NAME, None)
    if order:
        os.environ[NAME] = order
    config.cache_config.kv_cache_layout = None
    try:
        found = vllm_meta.plan(config, KV_BYTES)
    except Exception as error:  # whatever vLLM stumbles over is the answer
        return f"{type(error).__name__}: {str(error)[:120]}"
    return found.get("refused") or {key: found[key] for key in KEPT}


def main() -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    vllm_meta.platform()
    found: dict[str, Any] = {}
    for name in first_cases(cases):
        case = cases[name]
        made, _ = vllm_meta.build(
            copy.deepcopy(case["config"]),
            1,
            device=case.get("device", "meta"),
            beside=case.get("beside"),
            **case.get("flags", {}),
        )
        usual = ask(made, None)
        if isinstance(usual, str):
            continue
        answers = {order: ask(made, order) for order in ORDERS}
        found[name] = {order: None if answer == usual else answer for order, answer in answers.items()}
        print(name, found[name], flush=True)
    LAYOUTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
