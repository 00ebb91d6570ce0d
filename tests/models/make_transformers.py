"""Asks vLLM itself which architectures --model-impl transformers takes, and what weights and KV are then.

    python tests/models/make_transformers.py [NAME ...]

Writes `tests/fixtures/transformers_vllm_0.32.json`: for the cases of `architectures_vllm_0.32.json.xz` without flags,
per tensor-parallel size, bytes of parameters and of rotary tables on one rank and the plan of 20 GiB of KV under the
Transformers modelling backend, or the first words of its error. Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE, ask

WRITTEN = FIXTURE.with_name("transformers_vllm_0.32.json")
SIZES = (1, 2, 8)


def main(*names: str) -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    kept = json.loads(WRITTEN.read_text()) if WRITTEN.exists() else {}
    vllm_meta.platform()
    for name, case in cases.items():
        if case.get("flags") or case.get("draft") or (names and name not in names):
            continue
        asked = copy.deepcopy(case) | {"flags": {"model_impl": "transformers"}}
        kept[name] = {str(tp): ask(asked, tp) for tp in SIZES}
        print(name, kept[name], flush=True)
        lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(kept.items()))
        WRITTEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
