"""Asks vLLM itself which configs it would draft for with the model's own layers, and which methods it has.

    python tests/models/make_drafting.py

Writes `tests/fixtures/drafting_vllm_0.32.json`: of every config of the architectures' fixture, the drafting class, or
why not, for each number of tokens. Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
TOKENS = (1, 4, 9)


def ask(case: dict[str, Any], tokens: int) -> str:
    """The class that would draft, or the error."""
    flags = {
        **case.get("flags", {}),
        "speculative_config": {"method": "mtp", "num_speculative_tokens": tokens},
    }
    try:
        made = vllm_meta.engine_config(copy.deepcopy(case["config"]), 1, **flags)
    except Exception as error:  # whatever vLLM stumbles over is the answer
        said = " ".join(str(error).split()).removeprefix("1 validation error for SpeculativeConfig ")
        return f"{type(error).__name__}: {said[:160]}"
    return str(made.speculative_config.draft_model_config.architectures[0])


def methods() -> list[str]:
    """Every name that `SpeculativeConfig.method` takes."""
    from vllm.config.speculative import SpeculativeMethod

    def names(part: Any) -> list[str]:
        return (
            [part] if isinstance(part, str) else [name for inner in get_args(part) for name in names(inner)]
        )

    return sorted(set(names(SpeculativeMethod)))


def main() -> None:
    cases = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    vllm_meta.platform()
    said = {name: {str(n): ask(case, n) for n in TOKENS} for name, case in cases.items()}
    same = {
        name: next(iter(set(by.values()))) if len(set(by.values())) == 1 else by for name, by in said.items()
    }
    text = json.dumps({"methods": methods(), "mtp": dict(sorted(same.items()))}, indent=1)
    (FIXTURES / "drafting_vllm_0.32.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
