"""What the planner of older and newer vLLM versions does differently. 0.32 is the one mirrored throughout.

Read off the sources of 0.13, 0.16 to 0.31 (`v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`); 0.33 from
runs of its planner. Attention backends and block sizes are 0.32's for every version.
"""

from __future__ import annotations

from typing import NamedTuple

Version = tuple[int, int]
MIRRORED: Version = (0, 32)


class Rules(NamedTuple):
    """The planner's rules that changed between versions."""

    tokens_by_concurrency: bool = True
    """`GPU KV cache size` is concurrency x max_model_len; before 0.21 it was blocks // groups x block size."""
    counts_steps_in_flight: bool = True
    """Windows and chunks reserve for every step in flight; before 0.26 for one."""
    keeps_null_block: bool = True
    """The fit test leaves the null block out; before 0.29 it was counted as usable."""
    merge_ratio: float = 1.5
    """Kinds with fewer than this many times the smallest kind's layers make groups of the largest; 1.25 before 0.18."""
    checkpoint_families: frozenset[str] = frozenset({"mamba2"})
    """States that get one more block, to export a checkpoint from inside a prefill; none before 0.32."""
    gdn_exports_states: bool = False
    """A gated delta net whose prefill FlashInfer runs exports checkpoints as well, at multiples of 64 tokens; from
    0.33 on, with prefix caching."""


def rules_for(version: Version) -> Rules:
    """Return the rules of a version, e.g. (0, 32).

    >>> rules_for((0, 20)).tokens_by_concurrency, rules_for((0, 32)) == Rules()
    (False, True)
    """
    newer = version > MIRRORED
    checkpoints = {"mamba2"} if version >= MIRRORED else set()
    return Rules(
        tokens_by_concurrency=version >= (0, 21),
        counts_steps_in_flight=version >= (0, 26),
        keeps_null_block=version >= (0, 29),
        merge_ratio=1.5 if version >= (0, 18) else 1.25,
        checkpoint_families=frozenset(checkpoints),
        gdn_exports_states=newer,
    )
