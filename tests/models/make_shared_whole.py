"""Asks vLLM what one rank of tensor, data and expert parallelism at once holds of every mixture of experts.

    python tests/models/make_shared_whole.py

Writes `tests/fixtures/shared_whole_vllm_0.32.json`: for cases of `make_architectures.py`'s fixture that have experts,
one of each architecture and Kimi's all, bytes of parameters on one of two tensor-parallel ranks times two data-parallel
replicas with expert parallelism. `split`: tokens are split over ranks, and vLLM's classes may hold shared experts, and
more, whole; `naive`: the exchange (`flashinfer_nvlink_two_sided`) is none that they are split for; Kimi-K3 also with
`VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT`. What vLLM does not start is its error.
Environment: see `vllm_meta.py`.
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
from make_architectures import FIXTURE
from make_balanced import COUNTS, prepare
from switches import first_cases

SHARED = FIXTURE.with_name("shared_whole_vllm_0.32.json")
TP = DP = 2
SHARDS = "VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT"
EXCHANGES = {"split": "allgather_reducescatter", "naive": "flashinfer_nvlink_two_sided"}


def ranks(made: Any) -> None:
    """Groups of so many ranks in place of those of tensor parallelism alone."""
    import vllm.distributed.parallel_state as state

    state._DP, state._EP, state._WORLD = (vllm_meta._Ranks(n) for n in (DP, TP * DP, TP * DP))


def ask(case: dict[str, Any], exchange: str) -> Any:
    """Bytes on a rank, or what vLLM stumbles over."""
    flags = {
        **case.get("flags", {}),
        "enable_expert_parallel": True,
        "data_parallel_size": DP,
        "all2all_backend": exchange,
    }
    try:
        _, model = vllm_meta.build(copy.deepcopy(case["config"]), TP, beside=case.get("beside"), **flags)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:120]}"
    return vllm_meta.weights(model)[0]


def main() -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    vllm_meta.platform()
    prepare()
    built = vllm_meta.engine_config

    def engine_config(*args: Any, **options: Any) -> Any:
        made = built(*args, **options)
        ranks(made)
        return made

    vllm_meta.engine_config = engine_config
    found: dict[str, Any] = {}
    for name in sorted({*first_cases(cases), *(name for name in cases if name.startswith("KimiLinear"))}):
        text = json.dumps(cases[name]["config"])
        if not any(f'"{key}"' in text for key in COUNTS) or cases[name].get("device") == "cpu":
            continue
        found[name] = {key: ask(cases[name], exchange) for key, exchange in EXCHANGES.items()}
        if name.startswith("Kimi"):
            os.environ[SHARDS] = "1"
            found[name]["shards"] = ask(cases[name], EXCHANGES["split"])
            del os.environ[SHARDS]
        print(name, found[name], flush=True)
    SHARED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
