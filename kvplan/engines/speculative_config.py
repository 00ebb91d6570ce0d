"""How vLLM reads `--speculative-config`: which method it is, which model drafts, how many tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.models.load import find_bundled, load_model, path_exists

MTP_NAMES = """
    mtp deepseek_mtp dots3_note_mtp mimo_mtp mimo_v2_mtp glm4_moe_mtp glm4_moe_lite_mtp glm_ocr_mtp ernie_mtp
    nemotron_h_mtp exaone_moe_mtp exaone4_5_mtp qwen3_next_mtp qwen4_exp_mtp qwen3_5_mtp longcat_flash_mtp
    bailing_hybrid_v3_mtp minimax_m3_mtp bailing_hybrid_mtp kimi_k3_mtp pangu_ultra_moe_mtp step3p5_mtp hy_v3_mtp
    hy_v4_mtp gemma4_mtp inkling_mtp glm5_next_mtp
"""
METHODS = {"ngram": "ngram", "[ngram]": "ngram", "ngram_gpu": "ngram", "suffix": "ngram"}
METHODS |= {"draft_model": "draft_model", "eagle": "eagle", "eagle3": "eagle", "dspark": "dspark"}
METHODS |= dict.fromkeys(MTP_NAMES.split(), "mtp")
"""vLLM 0.32's names of methods -> kvplan's."""
UNPLANNED_METHODS = ("medusa", "mlp_speculator", "dflash", "extract_hidden_states", "custom_class")


def read_speculation(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """How vLLM reads --speculative-config: the method, or what the model's name says; tokens as stated."""
    method, draft = str(config.get("method") or ""), str(config.get("model") or "")
    if not method:
        method = "ngram" if draft in ("ngram", "[ngram]") else "draft_model"
    if method == "draft_model":
        method = _method_of(draft)
    if method in UNPLANNED_METHODS:
        raise KvplanError(
            f"--speculative-config: method {method!r} is not planned; without the flag the plan is that of the model"
            " alone, and its drafter takes more"
        )
    if method not in METHODS:
        raise KvplanError(
            f"--speculative-config: vLLM has no method {method[:40]!r}{did_you_mean(method[:40], METHODS)}"
        )
    tokens, short = config.get("num_speculative_tokens"), METHODS[method]
    if tokens is not None and str(tokens).strip() in ("0", "-0"):
        raise KvplanError("--speculative-config: num_speculative_tokens must be at least 1")
    if tokens is None and method == "suffix":
        tokens = config.get("suffix_decoding_max_tree_depth", 24)
    if tokens is None:
        raise KvplanError("--speculative-config: num_speculative_tokens is missing")
    if short in ("eagle", "draft_model") and not draft:
        raise KvplanError(f"--speculative-config: method {method!r} needs a model")
    apart = short in ("eagle", "draft_model", "dspark") or (short == "mtp" and _drafts_apart(draft))
    return {"num_speculative_tokens": tokens, "speculative_method": short}, draft if apart else ""


def _drafts_apart(draft: str) -> bool:
    """Whether a model named for multi-token prediction is one of its own, as Gemma 4's are; others are the target."""
    known = draft and (find_bundled(draft) or path_exists(Path(draft)))
    return bool(known) and load_model(draft).backbone_hidden_size > 0


def _method_of(draft: str) -> str:
    """What vLLM takes a model that drafts for, by its name."""
    name = draft.casefold()
    if "eagle-" in name:
        return "eagle"
    return next((method for method in ("eagle3", "dflash", "dspark") if method in name), "draft_model")
