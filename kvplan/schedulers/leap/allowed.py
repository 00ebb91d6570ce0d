"""Which engines leap: of every field of `EngineConfig`, the values that the closed forms were made for and held to.

The same for leaps by visits (`visits`). What is not listed goes step by step, a field that is added later too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from kvplan.schedulers.vllm.config import EngineConfig


def has_one_full_group(config: EngineConfig) -> bool:
    """Whether there is one table of the engine's own blocks, no hit of it cut short for a drafter that is not there."""
    first, *others = config.groups
    own_blocks = first.kind == "full" and first.block_size == config.block_size
    return not others and own_blocks and (config.use_eagle or not first.eagle)


def _groups_in_closed_form(config: EngineConfig) -> bool:
    """Whether what the groups take, give back and name is in closed form (`groups`)."""
    return has_one_full_group(config) or not why_no_groups(config)


def why_no_groups(config: EngineConfig) -> str:
    """Say which of the groups are not in closed form; empty where all are."""
    groups = config.groups
    states = {
        (g.block_size, g.checkpoint_blocks, g.checkpoint_alignment) for g in groups if g.kind == "mamba"
    }
    if len(states) > 1:
        return "states of several kinds"
    if any(
        g.kind == "mamba" and g.mode == "none" and (g.block_size or 0) < config.max_model_len for g in groups
    ):
        return "states in mode none of several blocks"
    if config.num_speculative_tokens:
        return "drafts beside them"
    if config.admission == "reserve_max":
        return "admission by what requests may ever hold"
    return _why_no_names(config) if config.enable_prefix_caching else ""


def _why_no_names(config: EngineConfig) -> str:
    """Say which blocks' names are not in closed form."""
    groups, kinds = config.groups, {g.kind for g in config.groups}
    if any(g.eagle for g in groups):
        return "hits cut short for a drafter"
    sizes = {*config.named_block_sizes, config.hash_block_size, config.scheduler_block_size}
    if "mamba" in kinds and any(g.bounded_replay for g in groups):
        return "windows out of prefix caching beside states"
    if not kinds & {"full", "sliding_window"}:
        return "chunks or states alone hit what was never computed"
    if config.prefix_cache_retention_interval != 0 and kinds - {"full", "chunked_local"}:
        return "prefix_cache_retention_interval"
    if kinds & {"mamba", "chunked_local"} and len(sizes) > 1:
        return "prefix caching of states or chunks with blocks of several sizes"
    return "" if config.rules.unhashed_blocks_go_first else "blocks freed in line"


def _admits_in_closed_form(config: EngineConfig) -> bool:
    """Whether the rule is: reserve_max over one table of blocks, or where the longest of all that may run fit."""
    if config.admission != "reserve_max" or (
        has_one_full_group(config) and not config.num_speculative_tokens
    ):
        return True
    most = -(-config.max_model_len // config.block_size) * config.max_num_active_reqs
    return not config.watermark and config.num_gpu_blocks > most


def _waits_in_closed_form(config: EngineConfig) -> bool:
    """Whether prompts are not held back, or over one table of blocks, a token a decode."""
    return config.batch_wait is None or (has_one_full_group(config) and not config.num_speculative_tokens)


def _prefills_any_time(config: EngineConfig) -> bool:
    """Whether no step is kept for decodes."""
    return config.prefill_schedule_interval == 1 or not config.rules.prefill_cadence_is_local


def _drafts_in_closed_form(config: EngineConfig) -> bool:
    """Whether steps verify all drafts, or show that they do not: no cap on prompts that cuts every decode as well."""
    return not 0 < config.long_prefill_token_threshold <= config.num_speculative_tokens


def _budgets_in_closed_form(config: EngineConfig) -> bool:
    """Whether a step has tokens for all that may run, and one budget says so: slots of drafting have their own."""
    is_less = config.token_budget < config.max_num_batched_tokens
    return not is_less or (not config.draft_slots and config.token_budget >= config.max_num_active_reqs)


def _caps_in_closed_form(config: EngineConfig) -> bool:
    """Whether the cap on prompts stays when requests come and go."""
    return not (config.long_prefill_token_threshold_adaptive and config.long_prefill_token_threshold)


def _rules_in_closed_form(config: EngineConfig) -> bool:
    """Whether this version's rules are in closed form: those not asked for leave what leaps alone, or are followed."""
    foresees = config.rules.sure_ends_are_foreseen or not config.async_scheduling
    return foresees and (config.rules.unchunked_heads_block or config.enable_chunked_prefill)


ANY = None
ALLOWED: dict[str, Collection[Any] | Callable[[EngineConfig], bool] | None] = {
    "kv_cache_groups": _groups_in_closed_form,
    "num_speculative_tokens": _drafts_in_closed_form,
    "disable_lookahead_block_hashes": ANY,
    "admission": _admits_in_closed_form,
    "batch_wait": _waits_in_closed_form,
    "kv_offloading": (None,),
    "prefill_schedule_interval": _prefills_any_time,
    "engine_version": _rules_in_closed_form,
    "policy": ("fcfs", "priority"),
    "async_scheduling": (False, True),
    "enable_prefix_caching": (False, True),
    "enable_chunked_prefill": (False, True),
    "scheduler_reserve_full_isl": (False, True),
    "block_size": ANY,
    "num_gpu_blocks": ANY,
    "max_num_seqs": ANY,
    "max_num_batched_tokens": ANY,
    "max_num_active_seqs": ANY,
    "max_num_scheduled_tokens": _budgets_in_closed_form,
    "long_prefill_token_threshold_adaptive": _caps_in_closed_form,
    "enable_mamba_shared_prefix_checkpoint": ANY,  # acts beside EAGLE's groups alone, of which visits follow the blocks
    "max_model_len": ANY,
    "watermark": ANY,
    "long_prefill_token_threshold": ANY,
    "prefix_match_unit": ANY,  # without say in one full-attention group, like the next
    "prefix_cache_retention_interval": ANY,
    "spec_method": ANY,
    "parallel_drafting": ANY,
    "disable_eagle_block_drop": ANY,
    "num_speculative_tokens_per_batch_size": (None,),
    "enable_adaptive_verification": (False,),
}
"""Field -> the values that leap, or a rule that asks the whole config; ANY = all."""

WHY_NOT: dict[str, Callable[[EngineConfig], str]] = {
    "kv_cache_groups": lambda config: (
        f"KV cache groups {sorted({group.kind for group in config.groups})}: {why_no_groups(config)} not in closed form"
    ),
    "num_speculative_tokens": lambda config: (
        f"long_prefill_token_threshold {config.long_prefill_token_threshold} cuts the drafts of every decode"
    ),
    "admission": lambda config: f"admission {config.admission} with drafts",
    "batch_wait": lambda config: "batch_wait beside drafts or several groups",
    "kv_offloading": lambda config: "a tier beyond the GPU: the ends of its copies are seen step by step",
    "engine_version": lambda config: (
        f"vLLM {config.engine_version} with asynchronous scheduling or without chunked prefill"
    ),
    "prefill_schedule_interval": lambda config: "prefill_schedule_interval counts steps",
    "enable_adaptive_verification": lambda config: (
        "enable_adaptive_verification: as many drafts as the batch makes worth it"
    ),
    "num_speculative_tokens_per_batch_size": lambda config: (
        "num_speculative_tokens_per_batch_size: as many drafts as the batch allows"
    ),
    "max_num_scheduled_tokens": lambda config: (
        f"max_num_scheduled_tokens {config.max_num_scheduled_tokens} below what the running may ask for"
    ),
    "long_prefill_token_threshold_adaptive": lambda config: (
        "long_prefill_token_threshold_adaptive: a cap that each arrival changes"
    ),
}


def _groups_to_visit(config: EngineConfig) -> bool:
    """Whether when a decode changes blocks of the groups is arithmetic of lengths."""
    return not _why_no_calendar(config)


def _why_no_calendar(config: EngineConfig) -> str:
    """Say which states' changes are not."""
    for group in config.groups:
        size = group.block_size or 0
        if group.kind == "mamba" and group.mode == "none" and size < config.max_model_len:
            return "states in mode none of several blocks"
        if group.kind == "mamba" and group.mode == "align" and size <= config.num_speculative_tokens:
            return "states in blocks of fewer tokens than a step's"
    return ""


def _rules_to_visit(config: EngineConfig) -> bool:
    """Whether no version's rule lets others pass by a head that cannot come in."""
    return config.rules.unchunked_heads_block or config.enable_chunked_prefill


VISITED: dict[str, Collection[Any] | Callable[[EngineConfig], bool] | None] = {
    "kv_cache_groups": _groups_to_visit,
    "admission": lambda config: config.admission != "reserve_max" or not config.num_speculative_tokens,
    "batch_wait": lambda config: config.batch_wait is None or not config.num_speculative_tokens,
    "engine_version": _rules_to_visit,
    "num_speculative_tokens_per_batch_size": ANY,
    "enable_adaptive_verification": ANY,
}
"""What is listed otherwise for leaps by visits."""


def why_not(config: EngineConfig) -> str:
    """Say why an engine cannot leap in closed form; empty when it can."""
    return _first_not_listed(config, ALLOWED)


def why_no_visits(config: EngineConfig) -> str:
    """Say why an engine cannot leap by visits; empty when it can."""
    return _first_not_listed(config, ALLOWED | VISITED)


def _first_not_listed(
    config: EngineConfig, table: dict[str, Collection[Any] | Callable[[EngineConfig], bool] | None]
) -> str:
    for field, allowed in table.items():
        value = getattr(config, field)
        if allowed is not None and not (allowed(config) if callable(allowed) else value in allowed):
            say = WHY_NOT.get(field)
            return say(config) if say else f"{field} {value}: not in closed form"
    unlisted = [field for field in type(config).model_fields if field not in table]
    return f"{unlisted[0]}: not in closed form" if unlisted else ""
