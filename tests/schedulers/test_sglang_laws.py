"""Laws of the second engine twin, on random engines and requests of every kind."""

from __future__ import annotations

from collections import Counter

from conformance.sglang.random_scenarios import MAX_STEPS, random_scenario
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvplan.conformance.sglang_replay import SGLangReplay
from kvplan.conformance.sglang_scenario import SGLangScenario
from kvplan.ground.content import Segment
from kvplan.schedulers.sglang.radix_cache import RadixCache, TreeNode, length_of
from kvplan.schedulers.sglang.req import ceil_page

seeds = st.one_of(st.integers(0, 999), st.integers(1000, 2**32))


def nodes(tree: RadixCache) -> list[TreeNode]:
    """All nodes but the root."""
    found, stack = [], list(tree.root.children.values())
    while stack:
        node = stack.pop()
        found.append(node)
        stack += node.children.values()
    return found


def check_tokens(replay: SGLangReplay) -> None:
    """Every token of the pool is free, cached or private, and counted once; locks are what requests hold."""
    scheduler, cache = replay.scheduler, replay.scheduler.cache
    tree, all_nodes = cache.tree, nodes(cache.tree)
    held = [req for req in replay.reqs.values() if req.holds_row]
    private = sum(ceil_page(req.kv_len, cache.page_size) - req.cache_protected_len for req in held)
    assert cache.available_size + tree.evictable_size + tree.protected_size + private == cache.size
    assert tree.evictable_size == sum(node.length for node in all_nodes if not node.lock_ref)
    assert tree.protected_size == sum(node.length for node in all_nodes if node.lock_ref)
    locks = Counter[TreeNode]()
    for req in held:
        node = req.lock
        while node is not None and node is not tree.root:
            locks[node] += 1
            node = node.parent
    for node in all_nodes:
        assert node.lock_ref == locks[node]
        assert node.length == length_of(node.key)
        assert node.length % cache.page_size == 0
    assert len(held) == scheduler.config.num_request_slots - cache.num_free_rows


@given(seeds, st.booleans())
@example(357, True)  # a refused request, one decode ahead when it ends
@settings(max_examples=40, deadline=None)
def test_tokens_are_conserved(seed: int, overlap: bool) -> None:
    """After every pass the pool adds up; at the end nothing is held and no lock is left."""
    replay = SGLangReplay(SGLangScenario(**random_scenario(seed) | {"async_scheduling": overlap}))
    for step in replay.iter_steps(MAX_STEPS):
        check_tokens(replay)
        assert len(step.running) <= replay.scheduler.config.num_request_slots
        assert set(step.running).isdisjoint(step.waiting)
    cache = replay.scheduler.cache
    if not replay.stuck:
        assert cache.tree.protected_size == 0
        assert cache.available_and_evictable == cache.size
        cache.tree.evict(cache.size)
        assert not nodes(cache.tree)


@given(seeds, st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_request_ends_once(seed: int, overlap: bool) -> None:
    """Each request ends exactly once, with the output it was meant to have, cut to what the pool can hold."""
    scenario = SGLangScenario(**random_scenario(seed) | {"async_scheduling": overlap})
    replay = SGLangReplay(scenario)
    result = replay.run(MAX_STEPS)
    ends = Counter(i for step in result.steps for i in (*step.finished, *step.aborted))
    assert set(ends.values()) <= {1}
    if result.stuck:
        return
    assert set(ends) == {request.id for request in scenario.requests}
    for request in scenario.requests:
        req = replay.reqs[request.id]
        if req.finished_reason != "abort":
            assert req.num_outputs == max(1, min(request.output_len, req.max_new_tokens))


@given(seeds)
@settings(max_examples=15, deadline=None)
def test_runs_repeat(seed: int) -> None:
    """The same scenario gives the same log."""
    scenario = SGLangScenario(**random_scenario(seed))
    assert SGLangReplay(scenario).run(500).state_sha256 == SGLangReplay(scenario).run(500).state_sha256


KEYS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=5
)


@given(st.lists(KEYS, min_size=1, max_size=12), st.sampled_from([1, 2, 4]))
@settings(max_examples=200, deadline=None)
def test_the_tree_is_a_set_of_prefixes(sequences: list[list[tuple[str, int, int]]], page: int) -> None:
    """What was inserted is found, to the page; a match is the longest prefix shared with any of them."""
    tree, spelled = RadixCache(page), []
    for pieces in sequences:
        key = tuple(Segment(name, length, start) for name, start, length in pieces)
        tokens = [(s.name, s.start + i) for s in key for i in range(s.length)]
        longest = max((common(tokens, other) for other in spelled), default=0)
        assert tree.match_prefix(key)[0] == longest // page * page
        assert tree.insert(key) == longest // page * page
        spelled.append(tokens)
    assert tree.evictable_size == sum(node.length for node in nodes(tree))
    paths = {tuple(tokens[:n]) for tokens in spelled for n in range(page, len(tokens) + 1, page)}
    assert tree.evictable_size == page * len(paths)


def common(a: list[tuple[str, int]], b: list[tuple[str, int]]) -> int:
    """Count the tokens that two sequences share from their start."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
