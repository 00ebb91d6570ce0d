"""How `--speculative-config` is read, beside vLLM's own config class (`tests/models/make_speculation.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.command import read_command
from kvplan.engines.speculative_config import SpeculationFlags, speculation
from kvplan.ground.errors import KvplanError
from kvplan.memory.answers import Plan
from kvplan.memory.forward import estimate
from kvplan.scenario.schema import Deployment
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import set_up

SAID = json.loads((FIXTURES / "speculation_vllm_0.32.json").read_text())
STARTS_NOT = {
    ("small", "eagle3"): "a head of 1,024 channels beside a target of 2,048 cannot share its embedding",
    ("eagle", "draft_model"): "",
    ("dflash", "draft_model"): "DFlash's class is no model by itself: its forward reads the target's states",
    ("qwen3_5", "mtp"): "multi-token-prediction layers of 1,024 channels beside a target of 2,048",
}
"""Drafts that vLLM's config class takes and its engine then does not start; "" for those that it starts."""


def planned(case: dict[str, Any], folder: Path) -> tuple[Plan, EngineConfig]:
    """The plan of the command that a case stands for, and what its scheduler is told."""
    target, config = folder / "t", dict(case["config"])
    target.mkdir()
    (target / "config.json").write_text(json.dumps(SAID["targets"][case["target"]]))
    if "draft" in case:
        draft = folder / "d"
        draft.mkdir()
        (draft / "config.json").write_text(json.dumps(SAID["drafts"][case["draft"]]))
        config["model"] = str(draft)
    words = ["vllm", "serve", str(target), "-tp", "2", "--speculative-config", json.dumps(config)]
    told = read_command([*words, "--max-num-batched-tokens", "8192", "--max-num-seqs", "256"])
    beside = {"draft": told.draft} if told.draft else {}
    plan = estimate(told.model, "h100", told.args, colocate=beside)
    made = set_up(Deployment(model=told.model, gpu="h100", engine=told.args, colocate=beside))
    return plan, made.config


def described(case: dict[str, Any]) -> str:
    return f"{case['target']} {case.get('draft', '')} {json.dumps(case['config'])}"


@pytest.mark.parametrize("case", SAID["cases"], ids=described)
def test_it_is_read_as_vllm_reads_it(case: dict[str, Any], tmp_path: Path) -> None:
    """Method, tokens, slots of the scheduler and asynchronous scheduling; what vLLM refuses is refused."""
    theirs = case["vllm"]
    if "error" in theirs or STARTS_NOT.get((case.get("draft", ""), theirs["method"])):
        with pytest.raises(KvplanError):
            planned(case, tmp_path)
        return
    plan, config = planned(case, tmp_path)
    mine = {
        "method": plan.args.speculative_method,
        "tokens": plan.args.num_speculative_tokens,
        "slots": config.draft_slots,
        "lookahead": config.num_lookahead_tokens,
        "async": plan.args.async_scheduling,
    }
    assert mine == {key: theirs[key] for key in mine}


def test_every_key_of_vllms_class_is_known() -> None:
    """Less those that vLLM fills in itself."""
    own = {"target_model_config", "target_parallel_config", "draft_parallel_config"}
    assert {name.replace("-", "_") for name in SAID["keys"]} - own == set(SpeculationFlags.model_fields)


def test_defaults_are_vllms() -> None:
    told = speculation(None).model_dump(mode="json")
    assert {name: told[name] for name in SAID["keys"] if name in told} == {
        name: value for name, value in SAID["keys"].items() if name in told
    }
