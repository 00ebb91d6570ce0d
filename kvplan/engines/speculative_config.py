"""How vLLM reads `--speculative-config`: its keys and their checks, which method it is, which model drafts.

Source: vLLM 0.32 `config/speculative.py: SpeculativeConfig`, `engine/arg_utils.py: create_speculative_config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kvplan.engines.draft_kinds import method_of_draft
from kvplan.formulas.draft_tiers import DraftTiers, tiers_fault
from kvplan.ground.config import Config, json_object, read_object
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.models.load import find_bundled, load_model, path_exists
from kvplan.models.spec import ModelSpec

Method = Literal[
    "mtp", "eagle", "eagle3", "dflash", "dspark", "draft_model", "medusa", "ngram", "ngram_gpu", "suffix",
    "extract_hidden_states", "custom_class",
]  # fmt: skip
MTP_NAMES = """
    mtp deepseek_mtp dots3_note_mtp mimo_mtp mimo_v2_mtp glm4_moe_mtp glm4_moe_lite_mtp glm_ocr_mtp ernie_mtp
    nemotron_h_mtp exaone_moe_mtp exaone4_5_mtp qwen3_next_mtp qwen4_exp_mtp qwen3_5_mtp longcat_flash_mtp
    bailing_hybrid_v3_mtp minimax_m3_mtp bailing_hybrid_mtp kimi_k3_mtp pangu_ultra_moe_mtp step3p5_mtp hy_v3_mtp
    hy_v4_mtp gemma4_mtp inkling_mtp glm5_next_mtp
"""
METHODS: dict[str, str] = {name: name for name in Method.__args__}  # type: ignore[attr-defined]
METHODS |= {"mlp_speculator": "mlp_speculator", **dict.fromkeys(MTP_NAMES.split(), "mtp")}
"""vLLM 0.32's names of methods -> what it makes of them."""
NEED_A_MODEL = ("draft_model", "eagle", "eagle3", "dflash", "medusa", "mlp_speculator")
MAY_HAVE_A_MODEL = (*NEED_A_MODEL, "mtp", "dspark")
NO_MLP_SPECULATOR = (
    "method 'mlp_speculator': vLLM 0.32 has no class for it (Model architectures ['MLPSpeculatorPreTrainedModel'] are"
    " not supported for now)"
)
MOE_BACKENDS = """
    auto triton batched_triton deep_gemm deep_gemm_mega_moe cutlass flashinfer_trtllm flashinfer_cutlass
    flashinfer_cutedsl flashinfer_moe_ep_cutedsl flashinfer_b12x b12x flashinfer_moe_ep_mega_deep_gemm marlin humming
    triton_unfused aiter aiter_mega_moe aiter_triton_mxfp4_bf16 flydsl hpc emulation rdna3
"""
Positive = Annotated[int, Field(ge=1)]
Chance = Annotated[float, Field(ge=0, le=1)]


class SpeculationFlags(Config):
    """The keys of `--speculative-config`, with vLLM's names, defaults and checks."""

    method: str | None = None
    """Who drafts; None: as the model says."""
    model: str | None = None
    """The model that drafts."""
    num_speculative_tokens: Annotated[int, Field(gt=0)] | None = None
    """Drafts of a step."""
    enforce_eager: bool | None = None
    """No effect: read by vLLM's first model runner alone."""
    draft_tensor_parallel_size: Positive | None = None
    """1, or the target's; no effect: the draft is cut by the target's ranks, whatever it says."""
    tensor_parallel_size: int | None = None
    """Refused: `draft_tensor_parallel_size` is meant."""
    quantization: str | None = None
    """How the draft is quantised on loading."""
    moe_backend: str | None = None
    """No effect: kernels of the draft's experts are timed as the default's."""
    attention_backend: str | None = None
    """Attention kernels of the draft, which say how large its blocks may be."""
    kv_cache_dtype: str | None = None
    """KV dtype of the draft; None: the target's."""
    max_model_len: Positive | None = None
    """No effect but its checks: at most the draft's context and the target's."""
    revision: str | None = None
    """No effect: which commit of the draft is loaded."""
    code_revision: str | None = None
    """No effect: which commit of the draft's code is loaded."""
    index_share_for_mtp_iteration: bool | None = None
    """No effect on memory: later passes of a sparse drafter take the first one's indices; timed as without."""
    disable_padded_drafter_batch: bool = False
    """No asynchronous scheduling."""
    disable_eagle_block_drop: bool = False
    """Prefix-cache hits keep the block whose drafter KV may differ."""
    use_local_argmax_reduction: bool = False
    """No effect: ranks exchange the best token's score, not all."""
    use_heterogeneous_vocab: bool = False
    """A draft model may have another vocabulary than its target."""
    prompt_lookup_max: Positive | None = None
    """No effect: n-grams of the prompt; which drafts are right is stated, not simulated."""
    prompt_lookup_min: Positive | None = None
    """No effect: as `prompt_lookup_max`."""
    parallel_drafting: bool = False
    """All drafts in one pass (P-EAGLE, PARD)."""
    num_speculative_tokens_per_batch_size: DraftTiers | None = None
    """[from, to, drafts] by the requests that a step holds."""
    draft_model_config: Mapping[str, Any] | None = None
    """Of extract_hidden_states: {"hf_config": {"eagle_aux_hidden_state_layer_ids": [...]}}."""
    suffix_decoding_max_tree_depth: int = 24
    """Drafts of method suffix, where num_speculative_tokens is not stated."""
    suffix_decoding_max_cached_requests: int = 10000
    """No effect: suffixes are kept in the host's memory."""
    suffix_decoding_max_spec_factor: float = 1.0
    """No effect: how long drafts are, by what they match; which are right is stated."""
    suffix_decoding_min_token_prob: float = 0.1
    """No effect: as `suffix_decoding_max_spec_factor`."""
    draft_load_config: Mapping[str, Any] | None = None
    """No effect: how the draft's files are read."""
    rejection_sample_method: Literal["standard", "synthetic", "block"] = "standard"
    """No effect: how drafts are accepted; which are right is stated."""
    synthetic_acceptance_rates: tuple[float, ...] | None = None
    """No effect: as `rejection_sample_method`; a scenario states `acceptance_rate`."""
    synthetic_acceptance_length: float | None = None
    """No effect: as `synthetic_acceptance_rates`."""
    enable_adaptive_verification: bool = False
    """Of the drafts as many are verified as their chances make worth it, the likeliest first."""
    draft_sample_method: Literal["greedy", "probabilistic"] = "greedy"
    """probabilistic keeps every draft's logits."""
    dspark_draft_topk: Positive | None = None
    """No effect on memory: DSpark's Markov head scores the likeliest tokens alone; timed as for all."""

    @model_validator(mode="after")
    def _as_vllm_checks(self) -> SpeculationFlags:
        if self.tensor_parallel_size is not None:
            raise ValueError("'tensor_parallel_size' is not a key; pass 'draft_tensor_parallel_size'")
        if self.moe_backend is not None and self.moe_backend not in MOE_BACKENDS.split():
            raise ValueError(f"vLLM has no moe_backend {self.moe_backend[:40]!r}")
        low, high = self.prompt_lookup_min, self.prompt_lookup_max
        if low is not None and high is not None and low > high:
            raise ValueError(f"prompt_lookup_min {low} must be at most prompt_lookup_max {high}")
        _check_suffixes(self)
        tiers = self.num_speculative_tokens_per_batch_size
        if tiers is not None and (fault := tiers_fault(tiers)):
            raise ValueError(f"num_speculative_tokens_per_batch_size: {fault}")
        return self


OWN_FIELDS = ("method", "model", "num_speculative_tokens")
"""Keys that are flags of their own, or the model beside."""
ACTING = (
    *("quantization", "attention_backend", "kv_cache_dtype", "disable_padded_drafter_batch"),
    *("disable_eagle_block_drop", "use_heterogeneous_vocab", "parallel_drafting", "draft_model_config"),
    *("draft_sample_method", "suffix_decoding_max_tree_depth", "num_speculative_tokens_per_batch_size"),
    "enable_adaptive_verification",
)
"""Keys beside those that change the plan; what others do stands under each."""
UNPLANNED = {
    "model": "a class of one's own, which drafts",
}
"""Keys that change it in ways that are not planned, and what they are about."""


def _check_suffixes(flags: SpeculationFlags) -> None:
    if flags.suffix_decoding_max_tree_depth < 1:
        raise ValueError("suffix_decoding_max_tree_depth must be at least 1")
    if flags.suffix_decoding_max_cached_requests < 0 or flags.suffix_decoding_max_spec_factor < 0:
        raise ValueError(
            "suffix_decoding_max_cached_requests and suffix_decoding_max_spec_factor must be at least 0"
        )
    if not 0 <= flags.suffix_decoding_min_token_prob <= 1:
        raise ValueError("suffix_decoding_min_token_prob must be in [0, 1]")


def _check_acceptance(flags: SpeculationFlags, drafts: int) -> None:
    """Acceptance that is stated, of as many drafts as there are."""
    rates, length = flags.synthetic_acceptance_rates, flags.synthetic_acceptance_length
    if flags.rejection_sample_method != "synthetic":
        if rates is not None or length is not None:
            raise ValueError(
                "synthetic_acceptance_rates and synthetic_acceptance_length are for rejection_sample_method 'synthetic'"
            )
        return
    if (rates is None) == (length is None):
        raise ValueError(
            "rejection_sample_method 'synthetic' takes synthetic_acceptance_rates or synthetic_acceptance_length"
        )
    if length is not None and not 1 <= length <= drafts + 1:
        raise ValueError(f"synthetic_acceptance_length must be in [1, {drafts + 1}], not {length:g}")
    if rates is not None and (len(rates) != drafts or not _falls(rates)):
        raise ValueError(f"synthetic_acceptance_rates must be {drafts} shares, none more than the one before")


def _falls(rates: tuple[float, ...]) -> bool:
    return all(0 <= rate <= 1 for rate in rates) and list(rates) == sorted(rates, reverse=True)


def parse_speculation(told: Any) -> SpeculationFlags:
    """The flag's object, checked key by key.

    Raises:
        ValueError: no object, an unknown key, a value that vLLM's config class refuses.
    """
    keys = {str(key).replace("-", "_"): value for key, value in json_object(told).items()}
    for key in ("target_model_config", "target_parallel_config", "draft_parallel_config"):
        keys.pop(key, None)  # vLLM puts its own there
    if unknown := sorted(set(keys) - set(SpeculationFlags.model_fields)):
        near = did_you_mean(unknown[0][:60], SpeculationFlags.model_fields)
        raise ValueError(f"vLLM's config has no key {unknown[0][:60]!r}{near}")
    return read_object(SpeculationFlags, keys)


def speculation_text(value: Any) -> str | None:
    """The keys beside method, model and tokens as vLLM's JSON, in one spelling; raises ValueError as vLLM would.

    >>> speculation_text({"prompt_lookup_max": 4, "prompt-lookup-min": 2, "parallel_drafting": False})
    '{"prompt_lookup_max": 4, "prompt_lookup_min": 2}'
    """
    if value is None:
        return None
    told = parse_speculation(value).model_dump(mode="json", exclude_defaults=True)
    rest = {
        key: one
        for key, one in sorted(told.items())
        if key not in OWN_FIELDS or (key == "model" and _is_class(one))
    }
    return json.dumps(rest) if rest else None


@lru_cache(64)
def speculation(text: str | None) -> SpeculationFlags:
    """What `speculation_text` wrote; the defaults of None."""
    return SpeculationFlags.model_validate_json(text) if text else SpeculationFlags.model_construct()


def with_own_fields(values: Any) -> Any:
    """Fields of `EngineArgs` with what `speculative_config` says of method and tokens in fields of their own.

    Raises ValueError for a model, which is named beside, and for what is given twice.
    """
    told = values.get("speculative_config") if isinstance(values, dict) else None
    if told is None:
        return values
    try:
        flags, found = parse_speculation(told), dict(values)
    except ValueError:
        return values  # refused by the field's own validator, which names the flag
    if flags.model is not None and not _is_class(flags.model):
        raise ValueError(
            "--speculative-config: the model that drafts is named beside, --colocate draft=MODEL"
        )
    own = {"speculative_method": flags.method, "num_speculative_tokens": flags.num_speculative_tokens}
    for name, value in own.items():
        if value is None:
            continue
        if found.get(name) not in (None, value):
            raise ValueError(f"speculative_config and {name} say two things: {value!r} and {found[name]!r}")
        found[name] = METHODS.get(value, value) if isinstance(value, str) else value
    return found


def read_speculation(config: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Fields of `EngineArgs` that --speculative-config tells, and the model that drafts; "" for none, or the target.

    Raises:
        KvplanError: what vLLM refuses.
    """
    try:
        flags = parse_speculation(config)
        method, draft = _method(flags)
        tokens = _tokens(flags, method, draft)
        _check_acceptance(flags, tokens)
        _check_method(flags, method)
    except ValueError as error:
        raise KvplanError(f"--speculative-config: {error}") from None
    fields = {"num_speculative_tokens": tokens, "speculative_method": method}
    if (text := speculation_text(config)) is not None:
        fields["speculative_config"] = text
    apart = method in MAY_HAVE_A_MODEL and (method != "mtp" or known_draft(flags.model or "") is not None)
    return fields, (flags.model or "") if apart else ""  # of an unknown name the target itself


def without_effect(text: str | None) -> tuple[str, ...]:
    """Keys of what `speculation_text` wrote that change nothing of the plan."""
    return tuple(key for key in _keys(text) if key not in ACTING and key not in UNPLANNED)


def not_planned(text: str | None) -> tuple[str, ...]:
    """Keys of it that change more than is planned, with what they are about."""
    return tuple(f"{key} ({UNPLANNED[key]})" for key in _keys(text) if key in UNPLANNED)


def _keys(text: str | None) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text else ()


def _method(flags: SpeculationFlags) -> tuple[str, ModelSpec | None]:
    """The method that vLLM makes of name and model, and the model where kvplan knows it."""
    name, model = flags.method, flags.model or ""
    if name is None:
        lookup = "ngram" if model in ("ngram", "[ngram]") else "draft_model"
        name = "custom_class" if _is_class(model) else lookup
    if name not in METHODS:
        raise ValueError(f"vLLM has no method {name[:40]!r}{did_you_mean(name[:40], METHODS)}")
    method = METHODS[name]
    if method == "mlp_speculator":
        raise ValueError(NO_MLP_SPECULATOR)
    if not model and (method in NEED_A_MODEL or method == "custom_class"):
        raise ValueError(f"method {name!r} needs a model")
    draft = known_draft(model) if method in MAY_HAVE_A_MODEL else None
    if model and method in MAY_HAVE_A_MODEL:
        method = method_of_draft(method, model, draft)
    if method == "mlp_speculator":
        raise ValueError(NO_MLP_SPECULATOR)
    return method, draft


def _is_class(model: str) -> bool:
    """Whether it is a class's dotted path rather than a model's name."""
    parts = model.split(".")
    apart = "/" not in model and not model.startswith(("http:", "https:", "file:"))
    return apart and len(parts) > 1 and all(part.isidentifier() for part in parts)


def _tokens(flags: SpeculationFlags, method: str, draft: ModelSpec | None) -> int:
    """As stated, else as the method or the draft's config says."""
    if flags.num_speculative_tokens is not None:
        return flags.num_speculative_tokens
    if method == "suffix":
        return flags.suffix_decoding_max_tree_depth
    trained = draft.draft_block if draft is not None and method != "mtp" else 0
    if draft is not None and draft.dspark and method == "dspark":
        trained = draft.dspark.block_size
    if trained:
        return trained
    raise ValueError("num_speculative_tokens is missing, and no config of the draft's says how many")


def _check_method(flags: SpeculationFlags, method: str) -> None:
    """Keys that one method alone takes."""
    if flags.index_share_for_mtp_iteration is not None and method != "mtp":
        raise ValueError("index_share_for_mtp_iteration is for method 'mtp' alone")
    if flags.dspark_draft_topk is not None and method in MAY_HAVE_A_MODEL and method != "dspark":
        raise ValueError("dspark_draft_topk is for method 'dspark' alone")
    if flags.use_heterogeneous_vocab and method != "draft_model":
        raise ValueError("use_heterogeneous_vocab is for method 'draft_model' alone")
    sampled = flags.draft_sample_method == "probabilistic"
    if sampled and flags.use_heterogeneous_vocab:
        raise ValueError("use_heterogeneous_vocab takes draft_sample_method 'greedy' alone")
    if sampled and flags.use_local_argmax_reduction and method in MAY_HAVE_A_MODEL:
        raise ValueError("use_local_argmax_reduction does not go with draft_sample_method 'probabilistic'")
    if flags.enable_adaptive_verification and method != "dspark" and flags.use_local_argmax_reduction:
        raise ValueError("enable_adaptive_verification does not go with use_local_argmax_reduction")


def known_draft(name: str) -> ModelSpec | None:
    """The model that drafts, where its config is at hand."""
    known = name and (find_bundled(name) or path_exists(Path(name)))
    return load_model(name) if known else None
