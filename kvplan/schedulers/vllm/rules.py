"""What vLLM's versions schedule differently: the one place that says so. `scheduler` and its rooms ask, docs list it.

0.32 is mirrored throughout; each `Rule` is something that changed before or after. A version follows every rule whose
`since` it has reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, overload

Version = tuple[int, int]
MIRRORED = "0.32"
"""The version taken when none is named."""


def parse_version(text: str) -> Version:
    """Read the first two numbers of a version.

    >>> parse_version("0.33.1")
    (0, 33)
    """
    major, minor = text.removeprefix("v").partition("-")[0].split(".")[:2]
    return int(major), int(minor)


def write_version(version: Version) -> str:
    """Write a version as its first two numbers."""
    return f"{version[0]}.{version[1]}"


EVERYTHING = "every feature of the twin"
FULL_ATTENTION = "full attention without drafts"
OLDEST, NEWEST = (0, 11), (0, 33)
CHECKED: dict[Version, str] = {
    **{(0, minor): FULL_ATTENTION for minor in range(11, 32)},
    (0, 32): EVERYTHING,
    (0, 33): EVERYTHING,
}
"""Version -> what was compared with logs of its own scheduler, and was equal (docs/validation/scheduler.md)."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that vLLM began to do; an attribute of `SchedulerRules` that says whether a version does it."""

    since: Version
    """The version that began."""
    now: str
    """What is done since then."""
    before: str
    """What was done before."""
    where: str
    """File and function of vLLM."""
    checked: str
    """Between which versions' logs it was seen; all of them are equal to the twin's."""

    @overload
    def __get__(self, rules: None, owner: type[SchedulerRules]) -> Rule: ...

    @overload
    def __get__(self, rules: SchedulerRules, owner: type[SchedulerRules]) -> bool: ...

    def __get__(self, rules: SchedulerRules | None, owner: type[SchedulerRules]) -> Rule | bool:
        return self if rules is None else rules.version >= self.since


class SchedulerRules:
    """The rules of one version.

    >>> SchedulerRules((0, 33)).lookahead_block_hashes, SchedulerRules((0, 32)).lookahead_block_hashes
    (True, False)
    """

    def __init__(self, version: Version) -> None:
        self.version = version

    sure_ends_are_foreseen = Rule(
        (0, 12),
        "Asynchronous: a request that the step in flight surely ends is not scheduled once more.",
        "It is, and that token is thrown away.",
        "v1/core/sched/scheduler.py: schedule",
        "logs of 0.11 and 0.12",
    )
    unchunked_heads_block = Rule(
        (0, 12),
        "Without chunked prefill, a prompt longer than what is left of the step blocks those behind it.",
        "They pass it, and all that were passed return to the queue in reverse.",
        "v1/core/sched/scheduler.py: schedule",
        "logs of 0.11 and 0.12",
    )
    whole_prompts_must_fit = Rule(
        (0, 19),
        "A prompt is admitted only if all of it fits (scheduler_reserve_full_isl).",
        "It is admitted if its first chunk fits.",
        "v1/core/sched/scheduler.py: schedule",
        "logs of 0.18 and 0.19",
    )
    unhashed_blocks_go_first = Rule(
        (0, 24),
        "Freed blocks without a name go to the front of the free queue.",
        "All freed blocks go to its tail.",
        "v1/core/block_pool.py: free_blocks",
        "logs of 0.23 and 0.24",
    )
    idle_victims_move_nobody = Rule(
        (0, 28),
        "By priority, a victim that stood before the request in turn makes nobody miss the step.",
        "If it had no tokens in this step, the next running request is passed over.",
        "v1/core/sched/scheduler.py: schedule",
        "logs of 0.27 and 0.28",
    )
    lone_prompts_have_no_cap = Rule(
        (0, 31),
        "long_prefill_token_threshold caps a prompt only beside other requests.",
        "It caps a lone prompt too.",
        "v1/core/sched/scheduler.py: schedule",
        "logs of 0.30 and 0.31",
    )
    lookahead_block_hashes = Rule(
        (0, 33),
        "A block's name covers the token after it, if EAGLE or MTP drafts; hits keep their last block.",
        "With EAGLE or MTP a hit leaves out its last block.",
        "config/vllm.py: num_hash_lookahead_tokens; v1/core/kv_cache_utils.py: get_request_block_hasher",
        "logs of 0.32 and 0.33",
    )
    junctions_are_pinned_below = Rule(
        (0, 33),
        "Where EAGLE still drops a block, a sparse group keeps also the block before a junction.",
        "It keeps the junction alone.",
        "v1/core/single_type_kv_cache_manager.py: cache_blocks",
        "logs of 0.32 and 0.33",
    )
    verified_blocks_are_cached_at_once = Rule(
        (0, 33),
        "With drafts, full blocks get their names when the output is read, in the synchronous loop too.",
        "There they get them at the request's next schedule().",
        "v1/core/sched/scheduler.py: update_from_output",
        "logs of 0.32 and 0.33",
    )
    victims_let_others_go_on = Rule(
        (0, 33),
        "By priority, after a request that preempts itself the next running one is looked at.",
        "The step schedules nobody after it.",
        "v1/core/sched/scheduler.py: schedule",
        "logs of 0.32 and 0.33",
    )
    states_are_marked_once = Rule(
        (0, 33),
        "A Mamba state that has its name can be hit again in the step that hits it: equal prompts enter together.",
        "Each hit of the prompt's last state marks it as written anew: equal prompts enter one a step.",
        "v1/core/single_type_kv_cache_manager.py: MambaManager._cache_partial_block",
        "logs of 0.32 and 0.33",
    )
    tier_ranks_by_request = Rule(
        (0, 33),
        "KV offloading, LRU: a running request's chunks have one rank, its tail the oldest, from their first use on.",
        "Chunks rank one by one as they are stored, and anew when the request ends.",
        "v1/kv_offload/cpu/policies/lru.py",
        "logs of 0.32 and 0.33",
    )
    lookups_restart_stores = Rule(
        (0, 33),
        "KV offloading: a request that starts over offers all its chunks again.",
        "It goes on behind those it had offered.",
        "kv_connector/v1/offloading/scheduler.py: get_num_new_matched_tokens",
        "logs of 0.32 and 0.33",
    )
    chunks_are_stored_whole = Rule(
        (0, 33),
        "KV offloading: a chunk of several blocks is left out if one of them that a hit needs has gone.",
        "It is left out if its last block has gone.",
        "kv_connector/v1/offloading/scheduler.py: _build_store_jobs",
        "logs of 0.32 and 0.33",
    )
    ends_take_back_tokens = Rule(
        (0, 33),
        "KV offloading: accepted drafts past a request's end do not count when its windows give blocks back.",
        "They do, so that a block or a state more comes back before the others.",
        "v1/core/sched/scheduler.py: _update_request_with_output",
        "logs of 0.32 and 0.33",
    )
    prefill_cadence_is_local = Rule(
        (0, 33),
        "prefill_schedule_interval holds prompts back on engines without data parallelism.",
        "It acts between data-parallel ranks alone.",
        "v1/core/sched/scheduler.py: schedule, local_prefill_interval",
        "logs of 0.32 and 0.33",
    )


class Difference(NamedTuple):
    """Something that changed and is not in the twin: it was read in vLLM's code, not followed."""

    since: Version
    what: str
    where: str


NOT_MODELLED = (
    Difference(
        (0, 12),
        "A victim by priority that had tokens in the step loses them; 0.11 still schedules it.",
        "v1/core/sched/scheduler.py: schedule",
    ),
    Difference(
        (0, 22),
        "Windows and chunks are admitted by what they ever hold at once, not by the whole prompt.",
        "v1/core/single_type_kv_cache_manager.py: max_admission_blocks_per_request",
    ),
    Difference(
        (0, 24),
        "watermark; windows and states keep names where a hit can end only (retention interval).",
        "config/scheduler.py, config/cache.py",
    ),
    Difference(
        (0, 25),
        "A single-token admission is padded with placeholder drafts.",
        "v1/core/sched/scheduler.py: schedule",
    ),
    Difference(
        (0, 26),
        "Windows give blocks back once tokens are processed, not once scheduled; junctions are pinned.",
        "v1/core/kv_cache_manager.py: allocate_slots",
    ),
    Difference(
        (0, 28), "A draft model takes an input slot for each request.", "v1/core/sched/scheduler.py: schedule"
    ),
    Difference(
        (0, 33),
        "A waiting head without room for its encoder input, or near a chunk's end under MTP of several"
        " modules, is passed over; before, it blocked the queue.",
        "v1/core/sched/scheduler.py: schedule",
    ),
    Difference(
        (0, 33),
        "No drafting in steps whose drafts nobody can verify: time, not decisions.",
        "v1/core/sched/scheduler.py: _drafts_unused",
    ),
    Difference(
        (0, 33),
        "Loads from HiSparse's host pool wait for steps in flight.",
        "v1/core/sched/scheduler.py: defer_async_loads",
    ),
)
"""Before 0.32 these concern windows, states, drafts and 0.11's priorities; from 0.33 on what the twin does not have."""


def changes() -> dict[str, Rule]:
    """Name -> rule, the oldest first."""
    found = {name: rule for name, rule in vars(SchedulerRules).items() if isinstance(rule, Rule)}
    return dict(sorted(found.items(), key=lambda item: item[1].since))
