"""What a config's rules stand for without having been held to that engine's own logs."""

from __future__ import annotations

from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.schedulers.vllm.rules import CHECKED, EVERYTHING, NEWEST, OLDEST, parse_version, write_version


def caveats(config: EngineConfig) -> tuple[str, ...]:
    """Say of which engines a config's rules are unchecked stand-ins; empty where its version's logs were equal."""
    found = []
    if config.admission != "grow":
        found.append(f"admission {config.admission}: not checked against TensorRT-LLM")
    if config.batch_wait:
        found.append("batch_wait: not checked against TensorRT-LLM's own logs")
    return (*found, *version_caveats(config))


def version_caveats(config: EngineConfig) -> tuple[str, ...]:
    """Say which version's rules were used instead of the one asked for, or which of them were not checked."""
    version = parse_version(config.engine_version)
    name = f"vLLM {write_version(version)}"
    if version > NEWEST:
        return (f"{name}: scheduling rules of {write_version(NEWEST)}, the newest known",)
    if version < OLDEST:
        return (f"{name}: scheduling rules of {write_version(OLDEST)}, the oldest known",)
    found = []
    if config.num_speculative_tokens_per_batch_size and version != (0, 32):
        found.append(f"{name}: num_speculative_tokens_per_batch_size as in 0.32")
    if CHECKED.get(version) == EVERYTHING:
        return tuple(found)
    if config.num_speculative_tokens or any(group.kind != "full" for group in config.groups):
        found.append(f"{name}: windows, states and drafts as in 0.32; not checked against its own logs")
    if version < (0, 12) and config.policy == "priority":
        found.append(f"{name}: preemption by priority as in 0.12; 0.11 keeps scheduling a victim of the step")
    return tuple(found)


def describe_rules(config: EngineConfig) -> str:
    """Name the rules that a run follows, and what they were held to."""
    version = parse_version(config.engine_version)
    followed = min(max(version, OLDEST), NEWEST)
    return f"vLLM {write_version(followed)}'s rules, held to its own logs: {CHECKED[followed]}"
