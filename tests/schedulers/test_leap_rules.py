"""Rules of the leap that random workloads hardly ever show: each has a case, and a mutant that the case catches."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from leap_scenarios import compare, random_scenario
from syntax_mutants import mutate

from kvplan.conformance.vllm_records import StepRecord
from kvplan.conformance.vllm_replay_leap import LeapReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.content import Segment
from kvplan.schedulers.leap import contents
from kvplan.schedulers.leap import running as leap_running
from kvplan.schedulers.leap import scheduler as leap
from kvplan.schedulers.leap.contents import ContentTrie
from kvplan.schedulers.leap.extents import ExtentPool
from kvplan.schedulers.leap.state import BlockRun, Hit, Hold, Sequence, Trunk
from kvplan.schedulers.request import Request

Json = dict[str, Any]


# --- whole scenarios ----------------------------------------------------------------------------

REFUND: Json = {
    "block_size": 4, "num_gpu_blocks": 10, "max_model_len": 64, "policy": "priority", "max_num_seqs": 8,
    "max_num_batched_tokens": 8, "long_prefill_token_threshold": 4, "scheduler_reserve_full_isl": False,
    "requests": [
        {"id": "v", "prompt": [{"len": 30}], "output_len": 4, "priority": 5},
        {"id": "a", "prompt": [{"len": 2}], "output_len": 9, "arrival_step": 1},
        {"id": "c", "prompt": [{"len": 30}], "output_len": 4, "priority": 1, "arrival_step": 2},
    ],
}  # fmt: skip
"""a takes v's blocks in a step in which v has had its 4 tokens: c gets them."""

ALONE: Json = {
    "block_size": 4, "num_gpu_blocks": 11, "max_model_len": 40, "watermark": 0.2,
    "requests": [{"id": "a", "prompt": [{"len": 36}], "output_len": 2}],
}  # fmt: skip
"""9 of 10 blocks: more than the watermark leaves, but nothing runs."""

SURE_END: Json = {
    "block_size": 1, "num_gpu_blocks": 396, "max_model_len": 474, "max_num_seqs": 8, "max_num_batched_tokens": 12,
    "requests": [
        {"id": "q0", "prompt": [{"prefix_id": "f", "len": 8}], "output_len": 2},
        {"id": "q1", "prompt": [{"prompt_of": "q0"}, {"output_of": "q0", "len": 2}, {"len": 1}], "output_len": 1,
         "arrival_step": 54},
        {"id": "q2", "prompt": [{"prompt_of": "q1"}, {"output_of": "q1", "len": 1}, {"len": 1}], "output_len": 2,
         "arrival_step": 2},
        {"id": "q3", "prompt": [{"prompt_of": "q1"}, {"output_of": "q1", "len": 1}], "output_len": 1,
         "arrival_step": 3},
    ],
}  # fmt: skip
"""q2 computes q0's last block in the step in which q0's end is read, asynchronously: q2's copy was hashed first."""

PASSED_OVER: Json = {
    "block_size": 2, "num_gpu_blocks": 26, "max_model_len": 50, "policy": "priority", "max_num_seqs": 8,
    "max_num_batched_tokens": 16, "long_prefill_token_threshold": 2,
    "requests": [
        {"id": "a", "prompt": [{"len": 5}], "output_len": 25, "priority": 1, "arrival_step": 3},
        {"id": "b", "prompt": [{"prompt_of": "a"}, {"output_of": "a", "len": 20}], "output_len": 5,
         "arrival_step": 21},
        {"id": "c", "prompt": [{"len": 20}], "output_len": 1, "priority": 1, "arrival_step": 15},
        {"id": "d", "prompt": [{"len": 20}], "output_len": 2, "arrival_step": 18},
        {"id": "e", "prompt": [{"prompt_of": "a"}, {"output_of": "a", "len": 10}], "output_len": 1,
         "arrival_step": 2},
    ],
}  # fmt: skip
"""A step passes a over, asynchronously: the token read meanwhile is known from then on, and its blocks are hashed."""


def three(*requests: tuple[int, int, int, int]) -> Json:
    """Three requests of (prompt, output, priority, arrival) on seven blocks of two tokens: lower ones have to go."""
    engine = {
        "block_size": 2, "num_gpu_blocks": 8, "max_model_len": 16, "policy": "priority", "max_num_seqs": 8,
        "max_num_batched_tokens": 64, "scheduler_reserve_full_isl": False, "enable_prefix_caching": False,
    }  # fmt: skip
    rows = [
        {
            "id": name,
            "prompt": [{"len": prompt}],
            "output_len": output,
            "priority": priority,
            "arrival_step": step,
        }
        for name, (prompt, output, priority, step) in zip("abc", requests, strict=True)
    ]
    return engine | {"requests": rows}


LOWEST = (leap_running, "_preempt_lowest")
SCENARIOS = {
    "a victim gives back what it got in the step": (
        three((1, 8, 2, 1), (2, 4, 1, 2), (5, 8, 0, 0)), (*LOWEST, "int(victim.admission < seq.admission)", "0")),
    "nobody is served behind one that had to go itself": (
        three((4, 2, 0, 1), (1, 7, 2, 0), (4, 5, 1, 2)), (*LOWEST, "not queues.victims_let_others_go_on", "False")),
    "one that has made room is not served": (
        three((4, 8, 2, 0), (5, 5, 1, 2), (1, 7, 2, 1)), (*LOWEST, "seq.stage is WAITING", "False")),
    "a victim's budget goes to others": (
        REFUND, (leap_running, "make_room", "step.budget += already + queues.draft_slots * (already > 0)", "pass")),
    "no watermark when nothing runs": (
        ALONE, (leap, "try_head", "queues.watermark_blocks if queues.running else 0",
                "queues.watermark_blocks")),
    "the last block of a sure end is hashed as it is read": (
        SURE_END, (leap.LeapScheduler, "_hold_last", "self._mark_until", "lambda *_: None")),
    "a token that was read is known": (
        PASSED_OVER, (leap.LeapScheduler, "_hash_all_known", "seq.known = computed + 1", "pass")),
}  # fmt: skip


def differs(row: Json) -> bool:
    """Whether leap and step by step differ, sync or async."""
    for is_async in (False, True):
        scenario = VLLMScenario(**row | {"async_scheduling": is_async})
        if compare(scenario, LeapReplay(scenario)):
            return True
    return False


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leap equals step by step; without the rule it does not."""
    row, mutant = SCENARIOS[name]
    assert not differs(row)
    mutate(monkeypatch, *mutant)
    assert differs(row)


# --- when a block was hashed --------------------------------------------------------------------


class Watched(LeapReplay):
    """A run that looks at every cached block after every change."""

    def __init__(self, scenario: VLLMScenario, rng: Random | None = None) -> None:
        super().__init__(scenario, rng=rng)
        self.hashed: dict[tuple[BlockRun, int], tuple[int, int]] = {}

    def _count_blocks(self, record: StepRecord) -> None:
        super()._count_blocks(record)
        trie, now = self.engine.pool.trie, self.engine.batch.num_steps
        trunks = [] if self._spelled or trie is None else [trie._root]
        while trunks:
            trunk = trunks.pop()
            trunks += trunk.children.values()
            for piece in trunk.pieces:
                owner, end = piece.run.owner, piece.hi
                if owner is not None:
                    end = min(end, self.engine.pool.num_hashed(owner, owner.computed_at(now)))
                for depth in range(piece.lo, end):
                    when = self.engine.pool._when_hashed(piece.run, depth)
                    assert when[0] < 2 * now, "hashed in the future"
                    assert self.hashed.setdefault((piece.run, depth), when) == when, "hashed at another time"


def watch(num_seeds: int, is_async: bool) -> int:
    """BlockRun random workloads; return how many blocks were seen."""
    seen = 0
    for seed in range(num_seeds):
        row = random_scenario(Random(seed)) | {"async_scheduling": is_async, "enable_prefix_caching": True}
        watched = Watched(VLLMScenario(**row))
        watched.run()
        seen += len(watched.hashed)
    return seen


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_block_is_hashed_once(is_async: bool) -> None:
    """When a block was hashed is a fact: no later event changes it, and it is never in the future."""
    assert watch(40, is_async) > 1000


MARKS = {
    "a decode that a step passes over": (
        False, (leap_running, "_pass_over", "seq.run.marks.append", "[].append")),
    "what the last token before a step without it completes": (
        True, (leap.LeapScheduler, "_hash_all_known", "self._mark_until", "lambda *_: None")),
}  # fmt: skip


@pytest.mark.parametrize("name", MARKS)
def test_marks_keep_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its mark the time of such a block would follow from a base that has moved since."""
    is_async, mutant = MARKS[name]
    mutate(monkeypatch, *mutant)
    with pytest.raises(AssertionError, match="hashed"):
        watch(300, is_async)


# --- the free queue -----------------------------------------------------------------------------


def pool_with(*runs: tuple[int, int, int]) -> tuple[ExtentPool, list[BlockRun]]:
    """A pool whose queue holds runs of one content: (first depth, end, when all was hashed)."""
    pool = ExtentPool(100, 4, enable_caching=True, hash_lag=0)
    trunk = Trunk(None, (0, "x", 0), None)
    made = []
    for admission, (lo, hi, when) in enumerate(runs, 1):
        owner = Sequence(Request(f"r{admission}", (Segment("x", 4 * hi),), 1), (0, admission))
        owner.admission, owner.computed = admission, 4 * hi
        owner.path = ((trunk, 0, hi),)
        hits = pool.find_longest_cache_hit(owner, 0, 0)._replace(num_blocks=lo)
        pool.adopt(owner, hits, when)
        assert owner.run is not None
        made.append(owner.run)
        pool.take(hi - lo)
        pool.release(owner, hi - lo, hi)
    return pool, made


def queue(pool: ExtentPool) -> list[tuple[int, int, int]]:
    """(admission, lo, hi) of the hashed pieces in the queue, front first; of a piece the deep end goes first."""
    found, piece = [], pool._queue.next
    while piece is not pool._queue:
        found.append((piece.run.admission, piece.lo, piece.hi))
        piece = piece.next
    return found


def holder(pool: ExtentPool, *hits: Hit) -> Sequence:
    """A request that holds hits."""
    seq = Sequence(Request("h", (Segment("x", 4),), 1), (0, 9))
    for hit in hits:
        seq.hold = Hold(seq.hold, hit, pool._touch(hit).trunk, 1)
    seq.run = BlockRun(seq, seq.admission)
    return seq


def test_a_queued_extent_splits_deep_rest_first() -> None:
    """Of a queued run whose middle is held, the deep rest keeps going first, and both keep their place in the queue."""
    pool, (one, *_) = pool_with((0, 10, 2), (0, 3, 4))
    holder(pool, Hit(one, 3, 6))
    assert queue(pool) == [(1, 6, 10), (1, 0, 3), (2, 0, 3)]
    assert pool.num_free == 100 - 3


def test_pieces_of_one_hit_are_freed_deep_first() -> None:
    """A hit that somebody else's hit has cut meanwhile is given back as if it were whole: its deep end goes first."""
    pool, (one,) = pool_with((0, 8, 2))
    whole = holder(pool, Hit(one, 0, 8))
    front = holder(pool, Hit(one, 0, 4))
    pool.release(front, 4, 4)
    assert queue(pool) == []
    pool.release(whole, 8, 8)
    assert queue(pool) == [(1, 4, 8), (1, 0, 4)]


def test_a_hit_changes_over_where_an_older_copy_starts() -> None:
    """The first-hashed copy of each block: a run that starts deeper may have been first from there on."""
    pool, (one, two) = pool_with((0, 10, 20), (4, 10, 6))
    [trunk] = {piece.trunk for piece in one.pieces}
    assert pool._first_copy(trunk.pieces, 0, 10, now=99) == (one.pieces[0], 4)
    assert pool._first_copy(trunk.pieces, 4, 10, now=99) == (two.pieces[0], 5)


QUEUE = {
    "split": ("_cut", "piece.prev if not piece.refs else None", "piece if not piece.refs else None",
              test_a_queued_extent_splits_deep_rest_first),
    "release": ("_release_hold", "reversed(other.pieces[:])", "other.pieces[:]",
                test_pieces_of_one_hit_are_freed_deep_first),
    "copies": ("_first_copy", "end = min(end, piece.lo)", "pass",
               test_a_hit_changes_over_where_an_older_copy_starts),
}  # fmt: skip


@pytest.mark.parametrize("name", QUEUE)
def test_queue_mutants(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The three tests above fail when the rule is turned round."""
    function, right, wrong, test = QUEUE[name]
    mutate(monkeypatch, ExtentPool, function, right, wrong)
    with pytest.raises(AssertionError):
        test()


# --- paths --------------------------------------------------------------------------------------


def test_a_known_path_is_the_one_that_a_walk_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that go on where others ended take their paths as far as these are theirs too."""
    known, seen = ContentTrie._known_path, []

    def checked(self: ContentTrie, request: Request) -> list[tuple[Trunk, int, int]]:
        path, node, depth = known(self, request), self._root, 0
        for trunk, lo, hi in path:
            child = node.children[contents._block_key(request, depth, self.block_size)]
            assert child is trunk
            assert child.owner is not None
            end = (
                contents.common_tokens(request, child.owner, (depth + 1) * self.block_size) // self.block_size
            )
            assert (lo, hi) == (depth, end)
            node, depth = child, end
        seen.append(len(path))
        return path

    monkeypatch.setattr(contents, "FEW_TRUNKS", 0)
    monkeypatch.setattr(ContentTrie, "_known_path", checked)
    for seed in range(150):
        scenario = VLLMScenario(
            **random_scenario(Random(seed)) | {"enable_prefix_caching": True, "block_size": 2}
        )
        LeapReplay(scenario).run()
    assert sum(length > 0 for length in seen) > 50
    assert max(seen) > 1
