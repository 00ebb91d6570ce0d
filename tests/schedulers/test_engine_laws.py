"""Laws of the engine twin, on random engines and requests of every kind."""

from __future__ import annotations

from collections import Counter

from conformance.random_scenarios import random_scenario
from hypothesis import given, settings
from hypothesis import strategies as st

from kvplan.conformance.vllm_replay import VLLMReplay
from kvplan.conformance.vllm_scenario import VLLMScenario
from kvplan.ground.content import Segment
from kvplan.schedulers.request import BlockHasher
from kvplan.schedulers.vllm import EngineConfig, Request, make_scheduler
from kvplan.schedulers.vllm.block_pool import BlockPool
from kvplan.schedulers.vllm.scheduler import Scheduler

seeds = st.integers(0, 2**32)


def check_blocks(scheduler: Scheduler) -> None:
    """Every block is either free or held as often as tables name it, and is counted once."""
    manager = scheduler.kv_cache_manager
    pool, held = manager.block_pool, Counter[int]()
    for group in manager.coordinator.managers:
        assert not group.pending_cow_copies
        for request_id, table in group.req_to_blocks.items():
            assert request_id in scheduler.requests
            held.update(block.block_id for block in table if not block.is_null)
    free = [block.block_id for block in pool.free_block_queue]
    assert len(free) == len(set(free)) == pool.get_num_free_blocks()
    assert not set(free) & set(held)
    assert len(free) + len(held) == pool.num_gpu_blocks - 1 == len(free) + sum(pool.num_used_by_group)
    for block in pool.blocks:
        if not block.is_null:
            assert block.ref_cnt == held[block.block_id]
    assert pool.num_cached_blocks == sum(block.block_hash is not None for block in pool.blocks)
    named = sum(block.block_hash is not None for block in pool.free_block_queue)
    assert pool.num_cached_free_blocks == named


@given(seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_blocks_are_conserved(seed: int, is_async: bool) -> None:
    """After every step each block is free or owned, never both; at the end none is owned."""
    scenario = VLLMScenario(**random_scenario(seed) | {"async_scheduling": is_async})
    replay = VLLMReplay(scenario)
    config = replay.scheduler.config
    for step in replay.iter_steps(max_steps=2000):
        check_blocks(replay.scheduler)
        assert step.n_tokens <= config.max_num_batched_tokens
        assert len(step.running) <= config.max_num_seqs
        assert set(step.running).isdisjoint(step.waiting)
    if not replay.scheduler.has_unfinished_requests():  # stuck, or preempting for ever as vLLM does too
        pool = replay.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        assert all(block.ref_cnt == 0 for block in pool.blocks if not block.is_null)


@given(seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_request_ends_once(seed: int, is_async: bool) -> None:
    """Each request finishes or is aborted exactly once, with the output it was meant to have, and is not run again."""
    scenario = VLLMScenario(**random_scenario(seed) | {"async_scheduling": is_async})
    replay = VLLMReplay(scenario)
    result = replay.run(max_steps=2000)
    ends = Counter(i for step in result.steps for i in (*step.finished, *(a[0] for a in step.aborted)))
    assert set(ends.values()) <= {1}
    if not all(request.is_finished for request in replay.requests.values()):
        return  # stuck, or preempting for ever as vLLM does too
    assert set(ends) == set(replay.requests)
    aborted = {a[0] for step in result.steps for a in step.aborted}
    for request in scenario.requests:
        if request.id not in aborted:
            expected = min(request.output_len, scenario.max_tokens(request))
            assert replay.requests[request.id].num_output_tokens == expected


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_runs_repeat(seed: int) -> None:
    """The same scenario gives the same log."""
    scenario = VLLMScenario(**random_scenario(seed))
    assert VLLMReplay(scenario).run(500).state_sha256 == VLLMReplay(scenario).run(500).state_sha256


@given(seeds, st.booleans())
@settings(max_examples=30, deadline=None)
def test_stop_tokens_are_a_surprise(seed: int, is_async: bool) -> None:
    """Until a stop token is sampled, no decision depends on where it will be."""
    data = random_scenario(seed) | {"async_scheduling": is_async}
    data |= {key: data[key] + 2 for key in ("max_model_len", "max_num_batched_tokens")}
    data["requests"] = [r for r in data["requests"] if not {"after", "abort_after"} & r.keys()][:1]
    data["requests"] = [r | {"stop": "eos", "output_len": max(2, r["output_len"])} for r in data["requests"]]
    if not data["requests"] or "max_tokens" in data["requests"][0]:
        return
    later = data | {"requests": [r | {"output_len": r["output_len"] - 1} for r in data["requests"]]}
    long, short = (VLLMReplay(VLLMScenario(**d)).run(2000).steps for d in (data, later))
    shared = next((k for k, s in enumerate(short) if s.finished), len(short))
    assert [s.sched_line() for s in long[:shared]] == [s.sched_line() for s in short[:shared]]


lengths = st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=1, max_size=8)


@given(lengths, st.sampled_from([1, 4, 16]), st.booleans())
def test_nothing_is_computed_twice_without_pressure(
    sizes: list[tuple[int, int]], block_size: int, is_async: bool
) -> None:
    """With room for all and nothing shared, a request computes prompt + output - 1 tokens."""
    blocks = sum(-(-sum(size) // block_size) for size in sizes) + 1
    config = EngineConfig(
        block_size=block_size, num_gpu_blocks=blocks + 1, max_model_len=200, async_scheduling=is_async
    )
    scheduler, computed = make_scheduler(config), Counter[str]()
    for i, (prompt, output) in enumerate(sizes):
        scheduler.add_request(Request(str(i), (Segment(f"p{i}", prompt),), max_tokens=output))
    batches = [scheduler.schedule()]
    while scheduler.has_unfinished_requests():
        if is_async:
            batches.append(scheduler.schedule())
        scheduler.update_from_output(batches[0])
        computed.update(batches.pop(0).num_scheduled_tokens)
        if not batches:
            batches.append(scheduler.schedule())
    assert computed == {str(i): prompt + output - 1 for i, (prompt, output) in enumerate(sizes)}


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_freed_blocks_queue_as_in_vllm(cached: list[bool]) -> None:
    """Unnamed blocks go to the front and cached ones to the tail, each the request's last block first."""
    pool = BlockPool(len(cached) + 4, enable_caching=True)
    blocks = pool.get_new_blocks(len(cached))
    for i, (block, named) in enumerate(zip(blocks, cached, strict=True)):
        if named:
            pool.cache_block(block, (i + 1, 0), i + 1)
    others = list(pool.free_block_queue)
    pool.free_blocks(reversed(blocks))
    unnamed = [b for b, named in zip(blocks, cached, strict=True) if not named]
    named = [b for b, named in zip(blocks, cached, strict=True) if named]
    assert list(pool.free_block_queue) == [*reversed(unnamed), *others, *reversed(named)]


segments = st.lists(
    st.builds(Segment, st.sampled_from(["a", "b"]), st.integers(0, 9), st.integers(0, 5)), max_size=6
)


@given(segments, segments, st.integers(1, 5))
def test_equal_names_are_equal_tokens(a: list[Segment], b: list[Segment], block_size: int) -> None:
    """Two blocks get one name exactly when all tokens up to their ends are equal."""

    def tokens(request: Request) -> list[tuple[str, int]]:
        return [(s.name, i) for s in request.prompt for i in range(s.start, s.end)]

    config = EngineConfig(block_size=block_size, num_gpu_blocks=2, max_model_len=99)
    hasher = make_scheduler(config).kv_cache_manager.hasher
    one, two = Request("1", tuple(a), 1), Request("2", tuple(b), 1)
    names = [hasher.block_hashes(r, r.num_tokens) for r in (one, two)]
    for i, (x, y) in enumerate(zip(*names, strict=False)):
        end = (i + 1) * block_size
        assert (x == y) == (tokens(one)[:end] == tokens(two)[:end])


@given(
    segments,
    segments,
    st.integers(1, 5),
    st.integers(0, 3),
    st.lists(st.tuples(st.booleans(), st.integers(0, 60))),
)
def test_names_do_not_depend_on_who_asks_when(
    a: list[Segment], b: list[Segment], size: int, lookahead: int, asked: list[tuple[bool, int]]
) -> None:
    """Names asked for bit by bit, in any order and of growing outputs, still are equal exactly for equal tokens."""

    def tokens(request: Request) -> list[tuple[str, int]]:
        return [(s.name, i) for s in request.content(0, request.num_tokens) for i in range(s.start, s.end)]

    hasher = BlockHasher(size, lookahead)
    grows = Request("1", tuple(a), 1)
    takes_up = Request("2", (*grows.prompt, Segment("out:1", 20), *b), 1)
    for first, num_tokens in (*asked, (True, 99), (False, 99)):
        request = grows if first else takes_up
        if request is grows:
            request.num_tokens = max(request.num_tokens, min(num_tokens, request.num_prompt_tokens + 20))
        hasher.block_hashes(request, min(num_tokens, hasher.num_hashed_tokens(request)))
    names = [hasher.block_hashes(r, 0) for r in (grows, takes_up)]
    for i, (x, y) in enumerate(zip(*names, strict=False)):
        end = (i + 1) * size + lookahead
        assert (x == y) == (tokens(grows)[:end] == tokens(takes_up)[:end])
    assert all(len(set(chain)) == len(chain) for chain in names)
