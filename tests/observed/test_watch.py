"""`kvplan watch`: a server's pages and usage, read; when the pool is full; what is longer than planned; limits."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from places import FIXTURES

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.observed.metrics_page import NO_LENGTHS, Histogram, Snapshot, log_of, pages_of, read_page
from kvplan.observed.watching.expected import ROOM, compare_classes, lengths_of, thinking_budget
from kvplan.observed.watching.forecast import FULL, LONGEST, draw_arrivals, draw_speeds, forecast, past_of
from kvplan.observed.watching.futures import MEDIANS, Past, length_weights
from kvplan.observed.watching.usage_log import Usage, read_usage
from kvplan.scenario.schema import load_scenario, parse_scenario
from kvplan.simulation.simulator import simulate

EXCHANGE = json.loads((FIXTURES / "vllm_exchange.json").read_text())
PAGE = """vllm:num_requests_running{{engine="0",model_name="Qwen/Qwen3-8B"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="Qwen/Qwen3-8B"}} {waiting}
vllm:kv_cache_usage_perc{{engine="0",model_name="Qwen/Qwen3-8B"}} {usage}
vllm:num_preemptions_total{{engine="0",model_name="Qwen/Qwen3-8B"}} {preempted}
vllm:prompt_tokens_total{{engine="0",model_name="Qwen/Qwen3-8B"}} {prompt}
vllm:generation_tokens_total{{engine="0",model_name="Qwen/Qwen3-8B"}} {decoded}
vllm:cache_config_info{{block_size="16",cache_dtype="auto",gpu_memory_utilization="0.9",num_gpu_blocks="{blocks}"}} 1.0
"""


def page(**figures: float) -> str:
    usual = {
        "running": 10,
        "waiting": 0,
        "usage": 0.5,
        "preempted": 0,
        "prompt": 0,
        "decoded": 0,
        "blocks": 1000,
    }
    return PAGE.format(**(usual | figures))


def snapshot(time_s: float, **figures: float) -> Snapshot:
    return read_page(page(**figures), time_s)


# ---- pages


def test_a_recorded_page_is_read() -> None:
    """vLLM 0.32's own page: 2,600 blocks of 32 are its 83,200 tokens."""
    lines = [*EXCHANGE["GET /metrics"], 'vllm:num_requests_running{engine="0",model_name="m"} 3.0']
    found = read_page("\n".join(lines))
    assert found.pool_tokens == 83_200
    assert found.running == 3
    log = log_of(found, "0.32.0", 8192)
    assert log.figures == {"num_gpu_blocks": 2600}
    assert log.flags["block_size"] == 32
    assert log.flags["max_model_len"] == 8192


def test_engines_are_added_up_and_the_fullest_pool_counts() -> None:
    second = page(running=4, usage=0.8, waiting=2).replace('engine="0"', 'engine="1"')
    found = read_page(page(running=3, usage=0.2) + second)
    assert (found.running, found.waiting, found.usage) == (7, 2, 0.8)


def test_pages_of_one_file_part_where_the_first_sample_comes_again() -> None:
    texts = [page(running=n) for n in range(5)]
    found = [read_page(text).running for text in pages_of("# HELP x\n" + "".join(texts))]
    assert found == [0, 1, 2, 3, 4]


def test_samples_may_carry_their_time() -> None:
    stamped = "\n".join(f"{line} 1795932459000" for line in page().splitlines())
    assert read_page(stamped, 5.0).time_s == 1795932459.0
    assert read_page(page(), 5.0).time_s == 5.0


def test_a_histogram_has_quantiles_and_differences() -> None:
    before = Histogram((10.0, 20.0, math.inf), (1.0, 2.0, 2.0), 25.0)
    after = Histogram((10.0, 20.0, math.inf), (1.0, 12.0, 12.0), 175.0)
    since = after.since(before)
    assert (since.requests, since.mean) == (10, 15)
    assert since.quantile(0.5) == 15
    assert before.since(after) == before  # counters fell: the server was started again
    assert math.isnan(NO_LENGTHS.quantile(0.5))


# ---- when it is full


def load(
    base_s: float, per_token_s: float, arrivals: float = 0.0, length: float = math.inf
) -> Iterator[Snapshot]:
    """A server in steps of 20 ms: requests of 100 + `length` tokens, a pool of 16,000; a page every second."""
    born = [0.0] * (10 if not arrivals else 0)
    prompt, decoded, ended, owed, now = 100.0 * len(born), 0.0, 0, 0.0, 0.0
    for step in range(50 * 600):
        held = sum(100 + tokens for tokens in born)
        full = held >= 0.98 * 16_000
        if step % 50 == 0 or full:
            counts = Histogram((math.inf,), (float(ended),), ended * length if ended else 0.0)
            prompts = Histogram((math.inf,), (float(ended),), ended * 100.0)
            yield Snapshot(now, "m", len(born), 0.0, min(1.0, held / 16_000), 0.0, prompt, decoded, ended, prompts,
                           counts, {"kv_cache_size_tokens": "16000"})  # fmt: skip
        if full:
            return
        each = 0.02 / (base_s + per_token_s * held)
        born = [tokens + each for tokens in born]
        decoded += each * len(born)
        ended += sum(tokens >= length for tokens in born)
        born = [tokens for tokens in born if tokens < length]
        owed += 0.02 * arrivals
        while owed >= 1:
            born.append(0.0)
            prompt, owed = prompt + 100, owed - 1
        now += 0.02


@pytest.mark.parametrize(
    ("base_s", "per_token_s", "arrivals", "length"),
    [
        (0.02, 0.0, 0.0, math.inf),  # ten thinkers at an even pace
        (0.02, 2e-6, 0.0, math.inf),  # slower with every token that is read
        (0.02, 0.0, 1.0, math.inf),  # one more every second
        (0.02, 1e-6, 1.5, 1200.0),  # and requests that end
    ],
)
def test_the_time_is_foretold_from_half_full(
    base_s: float, per_token_s: float, arrivals: float, length: float
) -> None:
    """Within 10 % of what is left, at every page from half full on."""
    pages = list(load(base_s, per_token_s, arrivals, length))
    full = next(p.time_s for p in pages if p.usage >= FULL)
    seen = [i for i, p in enumerate(pages) if p.usage >= 0.5 and full - p.time_s > 3]
    assert len(seen) > 3
    for i in seen:
        left = full - pages[i].time_s
        assert forecast(pages[: i + 1]).seconds == pytest.approx(left, rel=0.1, abs=1.5)


def test_a_load_that_ends_as_it_comes_never_fills() -> None:
    """Two a second of 200 tokens at 50 a second: eight live at once, for ever."""
    pages = [one for one, _ in zip(load(0.02, 0.0, 2.0, 200.0), range(60), strict=False)]
    assert forecast(pages).seconds == math.inf
    assert str(forecast(pages)) == "not at this trend"


def test_a_full_pool_is_full_now() -> None:
    for figures in ({"usage": 0.99}, {"usage": 0.96, "waiting": 3}):
        assert forecast([snapshot(0, decoded=1), snapshot(1, decoded=2, **figures)]).seconds == 0
    thrown = [snapshot(0, decoded=1), snapshot(1, decoded=2, preempted=1)]
    assert forecast(thrown).seconds == 0


def test_too_little_is_said_to_be_too_little() -> None:
    assert math.isnan(forecast([snapshot(0.0)]).seconds)
    assert math.isnan(forecast([snapshot(float(t)) for t in range(9)]).seconds)  # nothing decoded


def test_a_restart_begins_a_new_trend() -> None:
    pages = list(load(0.02, 0.0))[:30]
    before = [p._replace(time_s=p.time_s - 100, generation_tokens=p.generation_tokens + 1e6) for p in pages]
    assert forecast([*before, *pages]) == forecast(pages)


def test_a_queue_whose_prompts_would_fill_the_pool_waits_for_blocks() -> None:
    """Also where the page finds the pool at 94 %, because a request has just ended."""
    pages = [snapshot(t, decoded=t + 1, usage=0.94, waiting=9, prompt=8 * 300, running=8) for t in (0.0, 1.0)]
    assert forecast(pages).seconds == 0
    assert forecast([page._replace(usage=0.5) for page in pages]).seconds != 0


def test_a_recorded_load_is_foretold() -> None:
    """vLLM 0.32 on a CPU, 24 long thinkers at once (benchmarks/live_watch.py): from a third full on, three of four
    forecasts within 20 % of the time that was left; within 10 % once the first has ended, which nothing foretells."""
    text = (FIXTURES / "watch" / "rollout.prom").read_text()
    pages = [read_page(one) for one in pages_of(text)]
    full = next(pages[i].time_s for i in range(1, len(pages)) if forecast(pages[: i + 1]).seconds == 0)
    late = [i for i, page in enumerate(pages) if page.usage > 0.33 and full - page.time_s > 3]
    errors = [forecast(pages[: i + 1]).seconds / (full - pages[i].time_s) - 1 for i in late]
    assert len(errors) > 10
    assert np.mean([abs(error) <= 0.2 for error in errors]) >= 0.75
    known = [abs(error) for i, error in zip(late, errors, strict=True) if pages[i].finished]
    assert len(known) >= 3
    assert max(known) <= 0.1


CACHE = {"kv_cache_size_tokens": "64000"}
BUCKETS = (1.0, 10.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, math.inf)


def simulated_pages(
    seed: int, burstiness: float, sigma: float, before: int = 0
) -> tuple[list[Snapshot], float]:
    """A page a second of a simulated vLLM until its pool is 98 % held, and when that is.

    It has served `before` requests of the same lengths by the first page.
    """
    old = 600 * np.exp(sigma * np.random.default_rng(seed).standard_normal(before))
    said = {
        "model": "Qwen/Qwen3-8B", "gpu": "h100",
        "engine": {"num_gpu_blocks_override": 4000, "max_model_len": 16_384, "enable_prefix_caching": False},
        "step_time": {"fixed_us": 25_000, "per_sequence_us": 700},
        "workload": {
            "num_requests": 400, "seed": seed,
            "arrivals": {"kind": "poisson", "rate": 3.5, "burstiness": burstiness},
            "prompt": {"kind": "uniform", "low": 200, "high": 400}, "thinking": 0,
            "answer": {"kind": "lognormal", "median": 600, "sigma": sigma},
        },
    }  # fmt: skip
    records = simulate(parse_scenario(said)).records
    begin, first, end = (records.seconds(name) for name in ("scheduled", "first_token", "finish"))
    prompt, answer = records["prompt_tokens"], records["output_tokens"]
    # every running request gets a token a step: steps until a moment, by the stated step time
    moments = np.arange(0.0, end.max() + 1, 0.05)
    batch = np.searchsorted(np.sort(begin), moments, "right") - np.searchsorted(
        np.sort(end), moments, "right"
    )
    steps = np.concatenate([[0.0], np.cumsum(0.05 / (0.025 + 0.0007 * batch))[:-1]])
    first_step, last_step = np.interp(first, moments, steps), np.interp(end, moments, steps)

    def at(now: float) -> Snapshot:
        live, over = (begin <= now) & (end > now), end <= now
        done = (np.interp(now, moments, steps) - first_step) / np.maximum(1e-9, last_step - first_step)
        decoded = np.where(first <= now, np.clip(done, 0, 1) * answer, 0)
        ended = (np.concatenate([prompt[over], np.full(before, 300.0)]), np.concatenate([answer[over], old]))
        lengths = [
            Histogram(BUCKETS, tuple(float((n <= edge).sum()) for edge in BUCKETS), float(n.sum()))
            for n in ended
        ]
        held = (np.ceil((prompt + decoded) / 16) * 16)[live].sum() / 64_000
        waiting = float(((records.seconds("arrival") <= now) & (begin > now)).sum())
        return Snapshot(now, "m", float(live.sum()), waiting, min(1.0, held), 0.0,
                        float(prompt[begin <= now].sum()) + 300 * before, float(decoded.sum() + old.sum()),
                        float(over.sum()) + before, *lengths, CACHE)  # fmt: skip

    full = next(t for t in np.arange(0.0, 400.0, 0.1) if at(t).usage >= FULL)
    return [at(float(t)) for t in range(int(full) + 1)], full


@pytest.mark.parametrize(
    ("burstiness", "sigma", "before", "error"),
    [(1000.0, 0.3, 0, 0.1), (1.0, 0.3, 0, 0.2), (1.0, 1.0, 0, 0.25), (1.0, 1.0, 60, 0.2)],
    ids=["even", "random", "random, lengths too", "random lengths, some known"],
)
def test_the_range_covers_what_it_says(burstiness: float, sigma: float, before: int, error: float) -> None:
    """A load that outgrows its pool, simulated with many seeds: nine of ten times lie in the 90 % range."""
    inside, off = [], []
    for seed in range(12):
        pages, full = simulated_pages(seed, burstiness, sigma, before)
        late = [i for i, page in enumerate(pages) if page.usage > 0.3 and full - page.time_s > 3]
        for i in late[:: max(1, len(late) // 2)]:
            told, left = forecast(pages[: i + 1]), full - pages[i].time_s
            inside.append(told.low <= left <= told.high)
            off.append(abs(told.seconds / left - 1))
    assert np.mean(inside) >= 0.8
    assert np.median(off) <= error


def test_prompts_are_told_from_steps() -> None:
    """Thirty requests at once, whose prompts take most of the first second: what a step takes follows from the rest."""
    pages = []
    for t in range(9):
        steps = 0.0 if not t else (1.0 - 0.9) / 0.05 + (t - 1) / 0.05
        prompt, decoded = (0, 0) if not t else (30 * 300, 30 * steps)
        pages.append(snapshot(float(t), running=30 if t else 0, usage=prompt / 64_000 + decoded / 64_000,
                              prompt=prompt, decoded=decoded, blocks=4000))  # fmt: skip
    speed = draw_speeds(pages, np.random.default_rng(0))
    assert speed is not None
    last = pages[-1]
    step = speed.step + speed.sequence * last.running + speed.token * last.usage * last.pool_tokens
    assert np.median(step) == pytest.approx(0.05, rel=0.03)


def test_arrivals_are_as_uneven_as_they_were() -> None:
    """Variance by mean: near none at even gaps, 1 at random ones; what came at once before is no trend."""

    def drawn(came: Iterable[int]) -> tuple[float, float, float]:
        pages = [snapshot(float(t), running=n) for t, n in enumerate(came)]
        found = draw_arrivals(pages, np.random.default_rng(0))
        rate = found.rate
        return float(np.median(found.dispersion)), float(rate.mean()), float(rate.std() / rate.mean())

    rng = np.random.default_rng(1)
    dispersion, rate, doubt = drawn(3 * t for t in range(60))
    assert dispersion < 0.05
    assert rate == pytest.approx(3, rel=0.01)
    assert doubt < 0.02
    dispersion, rate, doubt = drawn(np.cumsum(rng.poisson(3, 60)))
    assert dispersion == pytest.approx(1, abs=0.3)
    assert doubt == pytest.approx(1 / math.sqrt(3 * 60), rel=0.3)
    assert drawn(min(t, 1) * 40 + t for t in range(60))[1] == pytest.approx(1, rel=0.02)


def test_the_rate_is_as_far_off_as_its_doubt_says() -> None:
    """Of random arrivals seen for twenty pages, nine in ten true rates lie in the middle 90 % of the drawn."""
    rng, inside = np.random.default_rng(7), []
    for _ in range(100):
        pages = [snapshot(float(t), running=n) for t, n in enumerate(np.cumsum(rng.poisson(2.5, 20)))]
        low, high = np.quantile(draw_arrivals(pages, rng).rate, (0.05, 0.95))
        inside.append(low <= 2.5 <= high)
    assert 0.84 <= np.mean(inside) <= 0.99


def test_what_a_server_finished_before_says_how_long_answers_are() -> None:
    """Of its own counts, else of a log's requests from before the first page; those that it counts not twice."""
    lengths = 600 * np.exp(0.3 * np.random.default_rng(2).standard_normal(80))
    counts = tuple(float((lengths <= edge).sum()) for edge in BUCKETS)
    told = Histogram(BUCKETS, counts, float(lengths.sum()))
    first = [snapshot(t, decoded=1 + 9 * t, prompt=99) for t in (0.0, 1.0, 2.0)]
    logged = [usage(300, n)._replace(time_s=-1.0) for n in lengths]
    for pages, log in (
        ([page._replace(finished=80.0, answers=told) for page in first], []),
        (first, [*logged, usage(300, 9e4)._replace(time_s=1.5)]),
    ):
        past = past_of(pages, log)
        weight = length_weights(past).sum(axis=1)
        assert np.exp(np.sum(weight * np.log(MEDIANS))) == pytest.approx(600, rel=0.15)


NOBODY = np.zeros((0, 4))


def test_no_answer_is_longer_than_the_server_allows() -> None:
    """Its buckets of lengths end within max_model_len: thinkers that all run on have no more than that before them."""
    pages = [snapshot(float(t), running=24, usage=0.1 + 0.03 * t, decoded=24 * 20 * t) for t in range(20)]
    told = Histogram((*BUCKETS[:-1], math.inf), (0.0,) * len(BUCKETS), 0.0)
    free = past_of(pages)
    bound = past_of([page._replace(answers=told) for page in pages])
    assert length_weights(free)[MEDIANS > 25_000].sum() > 0.1
    assert length_weights(bound)[MEDIANS > 25_000].sum() == 0


def test_lengths_follow_from_who_ended_when() -> None:
    """Requests of one length that end one after another: found within an eighth; where all run on: longer than that."""
    given = np.full(40, 50.0)
    started, ended = np.concatenate([[0.0], np.full(40, 3.0)]), np.zeros(40)
    ended[12:] = 3.0  # 12.5 intervals of 50 tokens
    rows = np.array([(i, n, 0.0, LONGEST) for i, n in enumerate(ended) if n])
    weight = length_weights(Past(started, 0.0, given, rows)).sum(axis=1)
    assert np.exp(np.sum(weight * np.log(MEDIANS))) == pytest.approx(625, rel=0.125)
    weight = length_weights(Past(started, 0.0, given, NOBODY)).sum(axis=1)
    assert weight[MEDIANS < 1500].sum() < 0.01


# ---- requests


def test_usage_is_found_where_clients_write_it() -> None:
    rows: list[dict[str, Any]] = [
        {
            "usage": {
                "prompt_tokens": 5,
                "completion_tokens": 7,
                "completion_tokens_details": {"reasoning_tokens": 4},
            }
        },
        {
            "response": {"body": {"usage": {"prompt_tokens": 5, "completion_tokens": 7}}},
            "metadata": {"class": "chat"},
        },
        {"usage": {"input_tokens": 5, "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 2}}},
        {"prompt_tokens": 5, "completion_tokens": 7, "created": 1795932459},
        {"error": "timeout"},
    ]
    found = read_usage([json.dumps(row) for row in rows] + [""])
    assert [(u.prompt_tokens, u.output_tokens) for u in found] == [(5, 7)] * 4
    assert [u.thinking_tokens for u in found][::2] == [4, 2]
    assert math.isnan(found[1].thinking_tokens)
    assert found[1].request_class == "chat"
    assert found[3].time_s == 1795932459


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"usage": {"prompt_tokens": "x", "completion_tokens": 1}}', '{"a": 1}']
)
def test_a_bad_log_is_one_line_of_complaint(line: str) -> None:
    with pytest.raises(KvplanError, match="the request log"):
        read_usage([line])


def usage(prompt: float, output: float, thinking: float = math.nan, name: str = "") -> Usage:
    return Usage(prompt, output, thinking, math.nan, name)


def test_requests_of_the_scenario_are_not_off_and_longer_ones_are() -> None:
    lengths = lengths_of(load_scenario("priorities"))
    rng = np.random.default_rng(3)
    drawn = [
        usage(one.prompt[i], one.output[i], name=name)
        for name, one in lengths.items()
        for i in rng.integers(0, len(one.output), 200)
    ]
    assert not any(found.is_off for found in compare_classes(drawn, lengths))
    doubled = [u._replace(output_tokens=3 * u.output_tokens) for u in drawn if u.request_class == "chat"]
    off = {found.name: found.is_off for found in compare_classes(doubled, lengths)}
    assert off["chat"]
    assert not off["batch"]


def test_a_request_without_a_class_goes_where_its_prompt_is_likeliest() -> None:
    lengths = lengths_of(load_scenario("priorities"))
    found = {
        c.name: c.num_requests
        for c in compare_classes([usage(300, 9), usage(290, 9), usage(701, 9)], lengths)
    }
    assert found == {"chat": 1, "batch": 0, "runaway": 2}


def test_the_budget_is_the_largest_that_keeps_them_in_the_pool() -> None:
    """Under it they fill no more than the room; a thousand tokens more and they do."""
    rng = np.random.default_rng(1)
    requests = [usage(400, t + 200, t) for t in rng.lognormal(9, 0.8, 500)]
    pool, at_once = 200_000.0, 40.0
    budget = thinking_budget(requests, at_once, pool)
    assert budget is not None
    assert at_once * budget.resident_tokens <= ROOM * pool
    assert at_once * budget.resident_tokens > 0.99 * ROOM * pool
    assert budget.share_cut == np.mean([u.thinking_tokens > budget.tokens for u in requests])
    assert thinking_budget(requests, 1.0, pool) is None  # none needed
    assert thinking_budget(requests, 1000.0, pool) is None  # none would do


# ---- the command


def files(folder: Path, count: int = 20, **figures: float) -> list[str]:
    names = []
    for i in range(count):
        path = folder / f"{i:02}.prom"
        path.write_text(page(usage=0.3 + 0.02 * i, decoded=320.0 * i, **figures))
        names.append(str(path))
    return names


def test_limits_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0.3 + 0.02 a second of a pool of 16,000 tokens: full after 15 s more."""
    names = files(tmp_path, waiting=3)
    assert run(["watch", *names, "--interval", "1"]) == 0
    assert "full                in 15 s" in capsys.readouterr().out
    for limit, says in (
        (["--max-kv", "0.6"], "KV use 68.0% is above --max-kv 0.6"),
        (["--max-queue", "2"], "3 requests wait, --max-queue is 2"),
        (["--full-within", "60"], "--full-within is 60 s"),
    ):
        assert run(["watch", *names, "--interval", "1", *limit]) == 1
        assert says in capsys.readouterr().out
    assert run(["watch", str(tmp_path), "--interval", "1", "--max-kv", "0.9", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["full"]["seconds"] == pytest.approx(15, rel=0.05)
    assert document["crossed"] == []


def test_pages_without_times_are_asked_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = tmp_path / "both.prom"
    both.write_text(page() + page(decoded=5))
    assert run(["watch", str(both)]) == 2
    assert "--interval" in capsys.readouterr().err
    assert run(["watch", str(tmp_path / "none.prom")]) == 2
    assert run(["watch", str(both), "--interval", "-1"]) == 2


def test_the_pool_stands_beside_the_planned_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = files(tmp_path, 1, blocks=24_813)
    assert run(["watch", *names, "--gpu", "h100", "--engine", "vllm@0.19"]) == 0
    assert "pool                397,008 tokens; planned" in capsys.readouterr().out
    assert run(["watch", *names, "--scenario", "long_thinking"]) == 0  # its model is the server's
    assert "pool                397,008 tokens; planned" in capsys.readouterr().out
    assert run(["watch", *names, "--scenario", "mla"]) == 0  # another model's
    assert "planned" not in capsys.readouterr().out


def test_a_log_alone_is_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "usage.jsonl"
    log.write_text('{"usage": {"prompt_tokens": 400, "completion_tokens": 60000}}\n' * 9)
    assert run(["watch", str(log), "--scenario", "long_thinking", "--max-tokens", "50000"]) == 1
    out = capsys.readouterr().out
    assert "off " in out
    assert "a request of 60,000 output tokens" in out


@pytest.fixture
def server() -> Iterator[str]:
    class Metrics(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self) -> None:
            type(self).asked += 1
            self.send_response(200)
            self.end_headers()
            self.wfile.write(page(usage=0.1 * type(self).asked, decoded=100 * type(self).asked).encode())

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_live_server_is_watched_until_a_limit_is_crossed(
    server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["watch", server, "--once"]) == 0
    assert "10.0%, at most 10.0%" in capsys.readouterr().out
    assert run(["watch", f"{server}/metrics", "--interval", "0.01", "--for", "60", "--max-kv", "0.45"]) == 1
    out = capsys.readouterr().out
    assert out.count("running    10") == 4  # 20 %, 30 %, 40 %, 50 %
    assert "KV use 50.0% is above --max-kv 0.45" in out


def test_why_reads_a_live_server_and_a_saved_page(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page with a queue in a full pool has a cause; one that is half empty has none."""
    saved = tmp_path / "page.prom"
    saved.write_text(page(usage=0.99, waiting=5))
    assert run(["why", str(saved), "--gpu", "h100", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["causes"][0]["name"] == "kv_full"
    assert run(["why", server]) == 0
