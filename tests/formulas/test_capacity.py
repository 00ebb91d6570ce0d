"""Capacity formulas: doctests, the figures of the field's texts to the byte, and laws."""

from __future__ import annotations

import ast
import doctest
import inspect
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from kvplan.formulas import capacity as cap
from kvplan.formulas import varying as capacity_mix
from kvplan.formulas.varying import coarser
from kvplan.ground.content import Segment
from kvplan.schedulers.vllm import EngineConfig, Request, make_scheduler
from kvplan.schedulers.vllm.config import KVCacheGroup

TOKENS = st.integers(0, 200_000)
BLOCK = st.sampled_from([1, 16, 32, 64, 784])
SHARINGS = ("none", "full_block", "vllm")


@pytest.mark.parametrize("module", [cap, capacity_mix], ids=lambda m: m.__name__)
def test_doctests(module: object) -> None:
    """Every example in the docstrings gives what it says."""
    result = doctest.testmod(module)  # type: ignore[arg-type]
    assert result.attempted > 5
    assert result.failed == 0


def test_every_function_shows_a_scalar_and_an_array() -> None:
    """The docstrings are the manual: words, units or an equation, and an example with an array."""
    for name in cap.__all__:
        doc = inspect.getdoc(getattr(cap, name)) or ""
        assert ">>>" in doc, name
        assert "[" in doc.split(">>>", 1)[1] or name in ("resident_moments", "max_traces"), name


def test_the_list_of_public_names_is_complete() -> None:
    """`__all__` has every public function, and nothing that is not there."""
    here = {n for n, f in vars(cap).items() if inspect.isfunction(f) and not n.startswith("_")}
    assert here == set(cap.__all__)


def test_the_planner_asks_every_formula_but_the_named_calculators() -> None:
    """A public formula has a caller in the package, or the module's docstring says that it has none."""
    files = [path for path in (ROOT / "kvplan").rglob("*.py") if path.name != "capacity.py"]
    trees = [ast.parse(path.read_text()) for path in files]
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {
        f.attr if isinstance(f, ast.Attribute) else f.id
        for f in calls
        if hasattr(f, "id") or hasattr(f, "attr")
    }
    calculators = cap.__doc__.split("calculators", 1)[1]
    assert {name for name in cap.__all__ if f"`{name}`" in calculators} == set(cap.__all__) - called


def test_capacity_needs_numpy_only() -> None:
    """Asking for a capacity loads neither pydantic nor anything heavier than numpy."""
    code = "import kvplan.formulas.capacity, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    root = ROOT
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert not {"pydantic", "torch", "simpy", "pandas", "scipy", "streamlit"} & set(loaded.stdout.split())


# The figures that texts of the field give, in bytes


def test_a_70b_model_costs_327680_bytes_a_token() -> None:
    """80 layers, 8 KV heads of 128, 2 bytes; half the KV heads, half the bytes."""
    assert cap.kv_bytes_per_token(80, 8, 128) == 327_680
    assert cap.kv_bytes_per_token(80, 4, 128) == 163_840


def test_long_and_short_traces_of_a_70b_model() -> None:
    """50,000 tokens of thinking against an answer of 500."""
    assert cap.sequence_bytes(50_000, 327_680) == 16_384_000_000
    assert cap.sequence_bytes(500, 327_680) == 163_840_000


def test_a_thinking_budget_caps_bytes() -> None:
    """10,000 thinking tokens capped at 2,048; a text says "26 MB", which is 79 tokens."""
    assert cap.sequence_bytes(10_000, 327_680) == 3_276_800_000
    assert cap.sequence_bytes(10_000, 327_680, cap=2_048) == 671_088_640
    assert 26_000_000 // 327_680 == 79


def test_eight_branches_over_one_prompt() -> None:
    """8 branches of 1,000 over a prompt of 4,000, at 128 KiB a token."""
    apart, shared = (
        cap.tree_tokens([1, 8], [4_000, 1_000], shared=False),
        cap.tree_tokens([1, 8], [4_000, 1_000]),
    )
    assert (apart, shared) == (40_000, 12_000)
    assert (apart - shared) * (128 << 10) == 3_670_016_000
    blocks = [cap.tree_blocks([1, 8], [4_000, 1_000], 16, sharing=s) for s in SHARINGS]
    assert blocks == [2_504, 754, 761]


def test_five_such_requests_forget_the_weights() -> None:
    """ "Five such requests on an 80 GB A100" fills the card with KV alone; 141 GB of bf16 weights are left out."""
    assert 80 * 2**30 // cap.sequence_bytes(50_000, 327_680) == 5
    assert 80 * 2**30 < 70_553_706_496 * 2


def test_three_sizes_of_a_window() -> None:
    """Gemma-3's window of 1,024 at 32k: what start-up reserves is far more than what decoding holds."""
    reserved = cap.window_blocks(32_768, 1_024, 2 * 8_192, 16)
    peak = cap.window_peak_blocks(32_768, 1_024, 8_192, 16)
    resident = cap.window_resident_blocks(32_768, 1_024, 16)
    assert (reserved, peak, resident) == (1_089, 577, 64)
    # 52 window and 10 full layers: 3.5 times as many blocks admitted as held
    assert (6 * reserved + 2_048) / (6 * resident + 2_048) == pytest.approx(3.5, abs=0.05)


def test_mamba_state_blocks() -> None:
    """One state without prefix caching, two with it, one more per draft, one more to export checkpoints."""
    assert [int(cap.state_blocks(d, c, p)) for d, c, p in [(0, 0, 0), (2, 0, 0), (0, 0, 1), (2, 1, 1)]] == [
        1,
        3,
        2,
        5,
    ]


# Laws


@given(TOKENS, TOKENS, st.integers(1, 10_000), st.integers(0, 40_000), BLOCK)
def test_blocks_grow_with_tokens(n: int, more: int, window: int, in_flight: int, block: int) -> None:
    """No reservation shrinks when a sequence gets longer."""
    for f in (
        lambda x: cap.full_blocks(x, block),
        lambda x: cap.window_blocks(x, window, in_flight, block),
        lambda x: cap.chunked_blocks(x, window, in_flight, block),
        lambda x: cap.window_peak_blocks(x, window, in_flight, block),
    ):
        assert f(n) <= f(n + more)


@given(TOKENS, st.integers(1, 10_000), st.integers(1, 40_000), BLOCK)
def test_a_window_holds_what_it_needs_and_no_more_than_reserved(
    n: int, window: int, in_flight: int, block: int
) -> None:
    """Resident blocks cover the window, and never exceed the whole sequence nor the reservation."""
    held = int(cap.window_resident_blocks(n, window, block))
    assert held * block >= min(n, window)
    assert held <= cap.full_blocks(n, block)
    assert held <= cap.window_blocks(n, window, in_flight, block)


@given(st.integers(0, 50_000), st.integers(1, 3_000), st.sampled_from([16, 32]))
def test_resident_windows_by_brute_force(n: int, window: int, block: int) -> None:
    """The closed form equals walking over the blocks and keeping those with a live token."""
    blocks = range(-(-n // block))
    live = sum((b + 1) * block - 1 >= n - window for b in blocks)
    assert cap.window_resident_blocks(n, window, block) == live


@pytest.mark.parametrize(
    ("group", "held"),
    [
        ({"kind": "sliding_window", "window": 100}, lambda n: cap.window_resident_blocks(n, 100, 16)),
        ({"kind": "chunked_local", "chunk": 64}, lambda n: cap.chunked_resident_blocks(n, 64, 16)),
        ({"kind": "full"}, lambda n: cap.full_blocks(n, 16)),
    ],
    ids=lambda x: x["kind"] if isinstance(x, dict) else "",
)
def test_resident_blocks_are_what_the_scheduler_holds(
    group: dict[str, object], held: Callable[[int], int]
) -> None:
    """A lone request under the engine's own rules holds the closed form's blocks in every decode step."""
    config = EngineConfig(
        num_gpu_blocks=200,
        max_model_len=600,
        async_scheduling=False,
        kv_cache_groups=(KVCacheGroup(**group),),
    )
    scheduler = make_scheduler(config)
    scheduler.add_request(Request("r", (Segment("p", 37),), max_tokens=400))
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks
    empty = free()
    for n in range(37, 430):
        output = scheduler.schedule()
        assert empty - free() == held(n), n
        scheduler.update_from_output(output)


TREES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3_000)), min_size=1, max_size=5)


def as_levels(levels: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return list(np.cumprod([fan for fan, _ in levels])), [tokens for _, tokens in levels]


@given(TREES, BLOCK)
def test_sharing_never_needs_more(levels: list[tuple[int, int]], block: int) -> None:
    """Physical tokens and blocks are at most logical ones; full-block sharing beats vLLM's hits beats none."""
    nodes, tokens = as_levels(levels)
    assert cap.tree_tokens(nodes, tokens) <= cap.tree_tokens(nodes, tokens, shared=False)
    none, full, vllm = (int(cap.tree_blocks(nodes, tokens, block, sharing=s)) for s in SHARINGS)
    assert full <= vllm <= none
    assert none == nodes[-1] * -(-sum(tokens) // block)


@given(TREES)
def test_blocks_of_one_token_share_perfectly(levels: list[tuple[int, int]]) -> None:
    """With one token a block, blocks are tokens: SGLang's radix tree with page size 1."""
    nodes, tokens = as_levels(levels)
    assert cap.tree_blocks(nodes, tokens, 1) == cap.tree_tokens(nodes, tokens)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=4),
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    BLOCK,
)
def test_trees_by_brute_force(tokens: list[int], fans: list[int], block: int) -> None:
    """Naming every leaf's blocks by the path up to the block's end counts the distinct ones."""
    fans = [1, *fans][: len(tokens)]
    paths: list[tuple[int, ...]] = [()]
    for fan in fans:
        paths = [(*path, i) for path in paths for i in range(fan)]
    ends = np.cumsum(tokens)
    held = set()
    for leaf, path in enumerate(paths):
        for b in range(-(-int(ends[-1]) // block)):
            end = (b + 1) * block
            depth = int(np.searchsorted(ends, end))  # the segment in which the block ends
            own = end > ends[-2] if len(ends) > 1 else True
            held.add((b, leaf) if own and end > ends[-1] else (b, path[: depth + 1]))
    assert cap.tree_blocks(np.cumprod(fans), tokens, block) == len(held)


@given(st.integers(1, 1_000), st.integers(0, 100_000), st.integers(1, 64))
def test_longest_trace_fits_and_the_next_does_not(n: int, blocks: int, block: int) -> None:
    """N traces of the longest length fit beside the null block; one token more does not."""
    longest = int(cap.longest_trace(n, blocks, block))
    usable = max(0, blocks - 1)
    assert n * int(cap.full_blocks(longest, block)) <= usable
    assert n * int(cap.full_blocks(longest + 1, block)) > usable


def test_broadcasting_answers_in_kind() -> None:
    """Scalars give scalars; a row against a column gives the table."""
    assert np.ndim(cap.full_blocks(5, 16)) == 0
    table = cap.window_blocks(np.arange(1, 6)[:, None] * 1_000, np.array([512, 1_024]), 8_192, 16)
    assert table.shape == (5, 2)
    assert cap.tree_blocks(np.ones((2, 3, 4), int), np.full((2, 1, 1), 10), 16).shape == (3, 4)


# Lengths that vary


def sampled_blocks(
    rng: np.random.Generator, prompts: np.ndarray, outputs: np.ndarray, size: int, block: int
) -> np.ndarray:
    """Blocks of running traces: met in proportion to their length, at a uniform age."""
    pick = rng.choice(len(outputs), size, p=outputs / outputs.sum())
    age = rng.integers(1, outputs[pick] + 1)
    return -(-(prompts[pick] + age) // block)


@given(st.integers(0, 5_000), st.integers(1, 5_000), BLOCK)
def test_mean_residency_by_brute_force(prompt: int, output: int, block: int) -> None:
    """The closed form is the mean over every decode step."""
    steps = -(-(prompt + np.arange(1, output + 1)) // block)
    assert cap.mean_resident_blocks(prompt, output, block) == pytest.approx(steps.mean())


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=8),
    st.sampled_from([1, 7, 16]),
)
def test_distribution_by_brute_force(traces: list[tuple[int, int]], block: int) -> None:
    """The distribution counts every (trace, step) once; its mean is the length-weighted mean residency."""
    prompts, outputs = np.array(traces).T
    contexts = np.concatenate([p + np.arange(1, o + 1) for p, o in traces])
    counts = np.bincount(-(-contexts // block))
    got = cap.resident_distribution(prompts, outputs, block)
    np.testing.assert_allclose(got, counts / counts.sum(), atol=1e-12)
    mean = np.average(cap.mean_resident_blocks(prompts, outputs, block), weights=outputs)
    assert cap.resident_moments(got).mean == pytest.approx(mean)


def test_overflow_agrees_with_sampling() -> None:
    """Exact and normal overflow probabilities of 64 log-normal traces against 40,000 drawn servers."""
    rng = np.random.default_rng(7)
    outputs = np.minimum(rng.lognormal(8.0, 0.8, 400).astype(int) + 1, 32_000)
    prompts = rng.integers(100, 2_000, 400)
    distribution = cap.resident_distribution(prompts, outputs, 16)
    mean, std = cap.resident_moments(distribution)
    blocks = int(64 * mean + 1.2 * np.sqrt(64) * std)
    drawn = sampled_blocks(rng, prompts, outputs, 64 * 40_000, 16).reshape(40_000, 64).sum(axis=1)
    share = (drawn > blocks - 1).mean()
    exact = cap.sum_overflow_probability(distribution, 64, blocks)
    assert exact == pytest.approx(share, abs=4 * np.sqrt(share / 40_000))
    assert float(cap.overflow_probability(64, blocks, mean, std)) == pytest.approx(exact, abs=0.02)


@given(st.integers(1, 60), st.integers(1, 400))
def test_overflow_falls_with_blocks_and_grows_with_traces(traces: int, blocks: int) -> None:
    """A larger pool never overflows more often; another trace never makes it rarer."""
    d = cap.resident_distribution([10, 50], [100, 30], 16)
    p = cap.sum_overflow_probability(d, traces, blocks)
    assert 0.0 <= p <= 1.0
    assert cap.sum_overflow_probability(d, traces, blocks + 1) <= p + 1e-9
    assert cap.sum_overflow_probability(d, traces + 1, blocks) >= p - 1e-9
    assert cap.sum_overflow_probability(d, traces, traces * (len(d) - 1) + 1) == 0.0


@given(st.integers(1, 40), st.lists(st.integers(1, 3_000), min_size=1, max_size=5))
def test_a_coarser_distribution_keeps_its_mean(factor: int, outputs: list[int]) -> None:
    """Probabilities sum to one and the mean is the same, in units; a factor of one changes nothing."""
    d = cap.resident_distribution(np.full(len(outputs), 10), outputs, 16)
    rough = coarser(d, factor)
    assert rough.sum() == pytest.approx(1.0)
    assert (rough >= 0).all()
    assert cap.resident_moments(rough).mean * factor == pytest.approx(cap.resident_moments(d).mean)
    assert np.array_equal(coarser(d, 1), d)


def test_a_coarser_distribution_holds_as_many() -> None:
    """Counted in units that are small beside a trace, a pool holds as many traces, to one."""
    d = cap.resident_distribution([500, 500, 500], [4_000, 9_000, 30_000], 1)
    for blocks in (100_000, 400_000):
        exact = cap.max_traces(d, blocks)
        assert cap.max_traces(coarser(d, 50), (blocks - 1) // 50 + 1) == pytest.approx(exact, abs=1)


@given(st.integers(20, 3_000), st.sampled_from([0.001, 0.01, 0.2]))
def test_max_traces_is_the_last_that_holds(blocks: int, overflow: float) -> None:
    """That many traces overflow rarely enough, one more does not; at least as many as by the final length."""
    d = cap.resident_distribution([10, 50], [300, 200], 16)
    n = cap.max_traces(d, blocks, overflow=overflow)
    assert n == 0 or cap.sum_overflow_probability(d, n, blocks) <= overflow
    assert cap.sum_overflow_probability(d, n + 1, blocks) > overflow
    assert n >= (blocks - 1) // (len(d) - 1)
