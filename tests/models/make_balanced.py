"""Asks vLLM what balancing experts (`--enable-eplb`) adds to every mixture of experts: redundant ones, buffers, maps.

    python tests/models/make_balanced.py

Writes `tests/fixtures/balanced_vllm_0.32.json`: for the first case of each architecture in `make_architectures.py`'s
fixture that has experts, on one of two expert-parallel ranks with two redundant experts: bytes of parameters, of the
buffer for one layer, and of `EplbState`'s maps and counts (window of 100 steps); what vLLM refuses, as its error.
Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE
from switches import first_cases

BALANCED = FIXTURE.with_name("balanced_vllm_0.32.json")
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_tok")
STATE = (
    "physical_to_logical_map_buffer",
    "logical_to_physical_map",
    "logical_replica_count",
    "expert_load_pass_buffer",
    "expert_load_window",
    "last_expert_load",
)


def prepare() -> None:
    """A line of a log that reads numbers of a tensor."""
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager

    ExpertMapManager.get_compressed_map_string = lambda self: ""


def size(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())


def ask(case: dict[str, Any], balances: bool) -> dict[str, Any]:
    """Bytes with and without."""
    import torch
    from vllm.distributed.eplb import eplb_state
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model

    flags = {**case.get("flags", {}), "enable_expert_parallel": True}
    if balances:
        flags |= {"enable_eplb": True}
        flags |= {
            "eplb_config": {"num_redundant_experts": 2, "window_size": 100, "communicator": "torch_gloo"}
        }
    made, model = vllm_meta.build(copy.deepcopy(case["config"]), 2, beside=case.get("beside"), **flags)
    found: dict[str, Any] = {"weights": vllm_meta.weights(model)[0]}
    mixture = get_mixture_of_experts_model(model) if balances else None
    if balances:
        found["is_mixture"] = mixture is not None
    if mixture is not None:
        eplb_state.create_eplb_communicator = lambda **options: None
        eplb_state.get_eplb_group = lambda: None
        state = eplb_state.EplbState(made.parallel_config, torch.device("cpu"))
        state.rearrange_event = types.SimpleNamespace()
        state.add_model(mixture, made.model_config)
        kept = next(iter(state.model_states.values()))
        found["buffer"] = sum(map(size, kept.expert_buffer))
        found["state"] = sum(size(getattr(kept, name)) for name in STATE)
    return found


def main() -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    vllm_meta.platform()
    prepare()
    found: dict[str, Any] = {}
    for name in first_cases(cases):
        text = json.dumps(cases[name]["config"])
        if not any(f'"{key}"' in text for key in COUNTS) or cases[name].get("device") == "cpu":
            continue
        try:
            found[name] = {"plain": ask(cases[name], False)}
            found[name] |= ask(cases[name], True)
        except Exception as error:  # whatever vLLM stumbles over is the answer
            found.setdefault(name, {})["refused"] = f"{type(error).__name__}: {str(error)[:120]}"
        print(name, found[name], flush=True)
        BALANCED.write_text(json.dumps(found, indent=0) + "\n")


if __name__ == "__main__":
    main()
