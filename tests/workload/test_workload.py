"""Workloads: lengths, arrivals and prompts are what the scenario says, and the same seed draws the same load."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kvplan.ground.errors import KvplanError
from kvplan.workload.arrivals import arrival_times
from kvplan.workload.classes import Workload
from kvplan.workload.lengths import Correlation, correlated_uniforms, normal_quantile, quantile
from kvplan.workload.load import draw_load, settle_lengths

N = 20_000


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def workload(**keys: object) -> Workload:
    return Workload.model_validate(keys)


def test_normal_quantile_is_scipys() -> None:
    """The rational approximation equals the reference within 1e-8 over the whole range."""
    u = np.concatenate([np.geomspace(1e-12, 0.5, 2000), 1 - np.geomspace(1e-12, 0.5, 2000)])
    assert np.allclose(normal_quantile(u), stats.norm.ppf(u), rtol=2e-9, atol=1e-8)


def test_lognormal_has_its_median_and_mean() -> None:
    """median and median * exp(sigma^2 / 2), as documented."""
    spec = workload(prompt={"kind": "lognormal", "median": 6000, "sigma": 0.8}).prompt
    lengths = quantile(spec, rng().random(200_000))
    assert np.median(lengths) == pytest.approx(6000, rel=0.01)
    assert lengths.mean() == pytest.approx(6000 * np.exp(0.32), rel=0.01)


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_quantiles_are_monotone_and_within_bounds(u: float, v: float) -> None:
    """A larger share never has a shorter length, and clips hold."""
    for spec in (
        {"kind": "lognormal", "median": 100, "sigma": 1.5, "low": 20, "high": 400},
        {"kind": "uniform", "low": 20, "high": 400},
        {"kind": "empirical", "values": [400, 20, 90], "weights": [1, 2, 3]},
    ):
        low, high = sorted((u, v))
        a, b = quantile(workload(prompt=spec).prompt, np.array([low, high]))
        assert 20 <= a <= b <= 400


def test_empirical_follows_its_weights() -> None:
    """Values come as often as their weights say."""
    spec = workload(prompt={"kind": "empirical", "values": [3, 1, 2], "weights": [1, 0, 3]}).prompt
    values, counts = np.unique(quantile(spec, rng().random(N)), return_counts=True)
    assert values.tolist() == [2, 3]
    assert counts[0] / N == pytest.approx(0.75, abs=0.02)


def test_correlations_are_rank_correlations() -> None:
    """The copula's three rank correlations are those asked for."""
    u = correlated_uniforms(Correlation(prompt_thinking=0.5, thinking_answer=-0.3), N, rng())
    assert stats.spearmanr(u[:, 0], u[:, 1])[0] == pytest.approx(0.5, abs=0.02)
    assert stats.spearmanr(u[:, 1], u[:, 2])[0] == pytest.approx(-0.3, abs=0.02)
    assert stats.spearmanr(u[:, 0], u[:, 2])[0] == pytest.approx(0, abs=0.02)


def test_impossible_correlations_are_refused() -> None:
    with pytest.raises(KvplanError, match="no three lengths"):
        correlated_uniforms(Correlation(prompt_thinking=1, prompt_answer=1, thinking_answer=-1), 10, rng())


@pytest.mark.parametrize(
    ("spec", "cv"),
    [
        ({"kind": "poisson", "rate": 4}, 1.0),
        ({"kind": "poisson", "rate": 4, "burstiness": 4}, 0.5),
        ({"kind": "gamma", "rate": 4, "cv": 2.5}, 2.5),
        ({"kind": "weibull", "rate": 4, "shape": 1}, 1.0),
        ({"kind": "constant", "rate": 4}, 0.0),
    ],
)
def test_arrivals_have_their_rate_and_burstiness(spec: dict[str, object], cv: float) -> None:
    """Mean gap 1 / rate; the gaps' coefficient of variation as stated."""
    gaps = np.diff(arrival_times(workload(arrivals=spec).arrivals, 100_000, rng()))
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03, abs=1e-9)


@pytest.mark.parametrize(("rate", "end_rate"), [(1, 5), (5, 1), (2, 2)])
def test_ramp_reaches_its_end_rate(rate: float, end_rate: float) -> None:
    """The ramp holds (rate + end_rate) / 2 * ramp_s arrivals, a quarter of the way less or more; then end_rate."""
    spec = workload(arrivals={"kind": "ramp", "rate": rate, "end_rate": end_rate, "ramp_s": 4000}).arrivals
    times = arrival_times(spec, 40_000, rng())
    assert (np.diff(times) >= 0).all()
    for t in (1000, 2500, 4000):
        expected = rate * t + (end_rate - rate) / 4000 * t * t / 2
        assert (times < t).sum() == pytest.approx(expected, rel=0.05)
    assert np.diff(times[times > 4000]).mean() == pytest.approx(1 / end_rate, rel=0.05)


def test_same_seed_same_load_and_streams_are_apart() -> None:
    """Equal seeds draw equal loads; another arrival process leaves the lengths as they were."""
    keys = {"num_requests": 50, "thinking": {"kind": "lognormal", "median": 900, "sigma": 1}, "seed": 3}
    a, b = draw_load(workload(**keys)), draw_load(workload(**keys))
    c = draw_load(workload(**keys, arrivals={"kind": "constant", "rate": 9}))
    assert (a.arrival_s == b.arrival_s).all()
    assert (a.output_tokens == b.output_tokens).all()
    assert (a.output_tokens == c.output_tokens).all()
    assert (draw_load(workload(**{**keys, "seed": 4})).output_tokens != a.output_tokens).any()


def test_classes_are_mixed_by_share() -> None:
    classes = {"chat": {"share": 3, "answer": 10}, "think": {"share": 1, "thinking": 500, "answer": 20}}
    load = draw_load(workload(classes=classes, num_requests=N))
    assert load.class_names == ["chat", "think"]
    assert (load.class_id == 1).mean() == pytest.approx(0.25, abs=0.02)
    assert set(load.output_tokens[load.class_id == 1]) == {520}
    assert set(load.thinking_tokens[load.class_id == 0]) == {0}


def test_shared_prefix_is_one_name_per_group() -> None:
    """Requests of one group start with the same piece; what follows is their own."""
    load = draw_load(workload(prompt=300, shared_prefix_tokens=100, shared_prefix_groups=2, num_requests=40))
    prompts = [load.prompt(i) for i in range(40)]
    assert {p[0] for p in prompts} == {("shared0.0", 100, 0), ("shared0.1", 100, 0)}
    assert len({p[1] for p in prompts}) == 40
    assert all(sum(piece[1] for piece in p) == 300 for p in prompts)


def test_a_conversation_is_all_that_was_said() -> None:
    """Turn 2's prompt is turn 1's prompt, its visible answer, and the message; kept thinking counts too."""
    session = {"turns": 3, "message": 7, "pause_s": 2, "pause": "constant"}
    keys = {"prompt": 100, "thinking": 30, "answer": 20, "num_requests": 2}
    load = draw_load(workload(**keys, session=session))
    settle_lengths(load, np.array([10_000]))
    assert len(load) == 6
    assert load.prompt_tokens.tolist() == [100, 100, 127, 154, 127, 154]
    assert load.next_turn.tolist() == [2, 4, 3, -1, 5, -1]
    assert load.prompt(3) == (
        ("p0", 100, 0),
        ("out:0", 20, 30),
        ("p2", 7, 0),
        ("out:2", 20, 30),
        ("p3", 7, 0),
    )
    kept = draw_load(workload(**keys, session={**session, "keep_thinking": True}))
    settle_lengths(kept, np.array([10_000]))
    assert kept.prompt_tokens.tolist() == [100, 100, 157, 214, 157, 214]
    assert kept.prompt(2)[1] == ("out:0", 50, 0)


def test_lengths_are_cut_as_vllm_cuts_them() -> None:
    """max_tokens becomes max_model_len - prompt; a prompt that leaves no room for a token is refused."""
    load = draw_load(workload(prompt=90, thinking=5, answer=50, num_requests=1))
    told, refused = settle_lengths(load, np.array([100]))
    assert (told[0], load.output_tokens[0], load.thinking_tokens[0], refused[0]) == (10, 10, 5, False)
    load = draw_load(workload(prompt=100, num_requests=1))
    assert settle_lengths(load, np.array([100]))[1][0]


def test_ways_to_stop() -> None:
    """`length` tells the scheduler the end, `eos` does not, `never` runs to the limit."""
    for stop, told, output in (("length", 50, 50), ("eos", 80, 50), ("never", 80, 80)):
        load = draw_load(workload(prompt=10, answer=50, stop=stop, max_tokens=80, num_requests=1))
        assert (settle_lengths(load, np.array([1000]))[0][0], load.output_tokens[0]) == (told, output)


def test_leavers() -> None:
    """A time-out holds for all, an early leave for its share."""
    load = draw_load(workload(timeout_s=30, abort_share=0.25, abort_after_s=0.001, num_requests=N))
    assert load.leaves_after_s.max() == 30
    assert (load.leaves_after_s < 30).mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"classes": {"a": {}}, "answer": 3}, "say it in each of the classes"),
        ({"arrivals": {"kind": "replay"}}, "need a trace"),
        ({"trace": {"path": "x", "format": "csv"}, "thinking": 4}, "brings its own lengths"),
        ({"prompt": {"kind": "uniform", "low": 5, "high": 4}}, "above high"),
        (
            {"prompt": {"kind": "empirical", "values": [1], "weights": [1, 2]}},
            "one non-negative number per value",
        ),
        ({"num_requests": 0}, "greater than or equal to 1"),
    ],
)
def test_contradictions_are_named(keys: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        workload(**keys)
