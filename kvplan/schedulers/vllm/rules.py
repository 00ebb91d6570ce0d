"""What vLLM's versions schedule differently: the one place that says so. `scheduler` and its rooms ask, docs list it.

0.32 is mirrored throughout; each `Rule` is something that changed before or after. A version follows every rule whose
`since` it has reached.
"""

from __future__ import annotations

from typing import NamedTuple, overload

Version = tuple[int, int]
MIRRORED = "0.32"
"""The version taken when none is named."""


def parse_version(text: str) -> Version:
    """Read the first two numbers of a version.

    >>> parse_version("0.33.1")
    (0, 33)
    """
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


class Rule(NamedTuple):
    """One thing that vLLM began to do; an attribute of `Rules` that says whether a version does it."""

    since: Version
    """The version that began."""
    now: str
    """What is done since then."""
    before: str
    """What was done before."""
    where: str
    """File and function of vLLM."""
    checked: str
    """The logs that hold the twin to it, or that it was only read."""

    @overload
    def __get__(self, rules: None, owner: type[Rules]) -> Rule: ...

    @overload
    def __get__(self, rules: Rules, owner: type[Rules]) -> bool: ...

    def __get__(self, rules: Rules | None, owner: type[Rules]) -> Rule | bool:
        return self if rules is None else rules.version >= self.since


class Rules:
    """The rules of one version.

    >>> Rules((0, 33)).lookahead_block_hashes, Rules((0, 32)).lookahead_block_hashes
    (True, False)
    """

    def __init__(self, version: Version) -> None:
        self.version = version

    sure_ends_are_foreseen = Rule(
        (0, 12),
        "Asynchronous: a request that the step in flight surely ends is not scheduled once more.",
        "It is, and that token is thrown away.",
        "v1/core/sched/scheduler.py: schedule",
        "",
    )
    unchunked_heads_block = Rule(
        (0, 12),
        "Without chunked prefill, a prompt longer than what is left of the step blocks those behind it.",
        "They pass it, and all that were passed return to the queue in reverse.",
        "v1/core/sched/scheduler.py: schedule",
        "",
    )
    whole_prompts_must_fit = Rule(
        (0, 19),
        "A prompt is admitted only if all of it fits (scheduler_reserve_full_isl).",
        "It is admitted if its first chunk fits.",
        "v1/core/sched/scheduler.py: schedule",
        "",
    )
    unhashed_blocks_go_first = Rule(
        (0, 28),
        "Freed blocks without a name go to the front of the free queue.",
        "All freed blocks go to its tail.",
        "v1/core/block_pool.py: free_blocks",
        "",
    )
    idle_victims_move_nobody = Rule(
        (0, 28),
        "By priority, a victim that stood before the request in turn makes nobody miss the step.",
        "If it had no tokens in this step, the next running request is passed over.",
        "v1/core/sched/scheduler.py: schedule",
        "",
    )
    lone_prompts_have_no_cap = Rule(
        (0, 31),
        "long_prefill_token_threshold caps a prompt only beside other requests.",
        "It caps a lone prompt too.",
        "v1/core/sched/scheduler.py: schedule",
        "",
    )
    lookahead_block_hashes = Rule(
        (0, 33),
        "A block's name covers the token after it, if EAGLE or MTP drafts; hits keep their last block.",
        "With EAGLE or MTP a hit leaves out its last block.",
        "config/vllm.py: num_hash_lookahead_tokens; v1/core/kv_cache_utils.py: get_request_block_hasher",
        "",
    )
    junctions_are_pinned_below = Rule(
        (0, 33),
        "Where EAGLE still drops a block, a sparse group keeps also the block before a junction.",
        "It keeps the junction alone.",
        "v1/core/single_type_kv_cache_manager.py: cache_blocks",
        "",
    )
    verified_blocks_are_cached_at_once = Rule(
        (0, 33),
        "With drafts, full blocks get their names when the output is read, in the synchronous loop too.",
        "There they get them at the request's next schedule().",
        "v1/core/sched/scheduler.py: update_from_output",
        "",
    )
    victims_let_others_go_on = Rule(
        (0, 33),
        "By priority, after a request that preempts itself the next running one is looked at.",
        "The step schedules nobody after it.",
        "v1/core/sched/scheduler.py: schedule",
        "",
    )
    states_are_marked_once = Rule(
        (0, 33),
        "A Mamba state that has its name can be hit again in the step that hits it: equal prompts enter together.",
        "Each hit of the prompt's last state marks it as written anew: equal prompts enter one a step.",
        "v1/core/single_type_kv_cache_manager.py: MambaManager._cache_partial_block",
        "",
    )
    prefill_cadence_is_local = Rule(
        (0, 33),
        "prefill_schedule_interval holds prompts back on engines without data parallelism.",
        "It acts between data-parallel ranks alone.",
        "v1/core/sched/scheduler.py: schedule, local_prefill_interval",
        "",
    )
