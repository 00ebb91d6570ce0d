"""Every bundled scenario runs and shows what its comment says; a wrong file is one line that names the key."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import pytest

from kvplan.cli.main import run
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import scenarios_dir
from kvplan.ground.limits import Limit
from kvplan.scenario.schema import dump_scenario, load_scenario, parse_scenario
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate

NAMES = sorted(path.stem for path in scenarios_dir().glob("*.yaml"))
SIMULATED = [name for name in NAMES if getattr(load_scenario(name), "problems", None) is None]


@cache
def result(name: str, *overrides: str) -> Result:
    return simulate(load_scenario(name, overrides))


@pytest.mark.parametrize("name", SIMULATED)
def test_every_scenario_runs_to_its_end(name: str) -> None:
    """Each ends by itself; every request has one record, and nothing is computed that nobody asked for."""
    found = result(name, "workload.num_requests=24")
    assert found.verdict == "completed"
    assert len(found.records) >= 24
    assert len(set(found.records["request_id"].tolist())) == len(found.records)
    assert found.num_completed >= 0.8 * len(found.records)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", NAMES)
def test_every_scenario_says_what_it_shows(name: str) -> None:
    assert (scenarios_dir() / f"{name}.yaml").read_text().startswith("# ")


def test_there_are_ten_scenarios() -> None:
    assert len(NAMES) >= 10


def test_thinking_collapses_concurrency() -> None:
    """The same card and load: with thinking, requests queue for KV; in 8 bits, about twice as many fit."""
    chat, thinking, fp8 = (result(name, "workload.num_requests=300") for name in
                           ("chat", "long_thinking", "fp8_kv"))  # fmt: skip
    assert chat.limited_by == Limit.ARRIVAL_RATE
    assert thinking.limited_by == Limit.KV_BLOCKS
    assert chat.slo_met is True
    assert thinking.slo_met is False
    assert fp8.pool.num_blocks == pytest.approx(2 * thinking.pool.num_blocks, rel=0.05)
    assert fp8.totals.preemptions < thinking.totals.preemptions
    assert fp8.duration_s < thinking.duration_s


def test_a_starved_pool_preempts() -> None:
    found = result("kv_starved")
    assert found.totals.preemptions > len(found.records)
    assert found.pool.peak_fraction > 0.99
    assert any("preemptions" in text for text in found.advice)


def test_drafts_save_steps() -> None:
    """A draft a step, right in 85 of 100: 1.85 tokens a step, which lasts little longer while the batch is small."""
    few = "workload.num_requests=100"
    drafted, plain = (
        result("speculative_thinking", few, *more) for more in ((), ("engine.num_speculative_tokens=0",))
    )
    assert drafted.modes == plain.modes == {"": "leap"}
    tokens = drafted.records["output_tokens"].sum() / drafted.totals.num_decodes
    assert tokens == pytest.approx(1.85, abs=0.03)
    assert drafted.slo_met is True
    assert drafted.summaries()["tpot"].mean < 0.75 * plain.summaries()["tpot"].mean


def test_shared_prompts_are_hits() -> None:
    """With the cache, all but the first request of each preamble hit its 3,000 tokens, rounded down to blocks."""
    found = result("shared_prompts", "workload.num_requests=80")
    hits = found.records["hit_tokens"]
    assert set(hits.tolist()) == {0, 2992}
    assert (hits == 0).sum() == 4
    without = result("shared_prompts", "workload.num_requests=80", "engine.enable_prefix_caching=false")
    assert without.records["hit_tokens"].sum() == 0
    assert without.summaries()["ttft"].mean > 1.5 * found.summaries()["ttft"].mean


def test_an_agent_hits_its_own_conversation() -> None:
    """Later turns hit nearly all of what was said before."""
    found = result("agent_session", "workload.num_requests=12")
    later = found.records["turn"] > 0
    assert later.sum() > 20
    share = found.records["hit_tokens"][later].sum() / found.records["prompt_tokens"][later].sum()
    assert 0.5 < share < 1


def test_windows_and_states_leap() -> None:
    for name in ("sliding_window", "hybrid", "chat", "moe_lockstep"):
        assert result(name, "workload.num_requests=24").modes[""] == "leap"


def test_disaggregated_decodes_are_never_mixed_with_prompts() -> None:
    """The decode replicas' steps hold no prompt chunk, so inter-token latency has no prefill spikes."""
    apart = result("disaggregated", "workload.num_requests=100")
    joined = result("disaggregated", "workload.num_requests=100", "disaggregation=null", "replicas=3")
    assert apart.totals.mixed_ticks == 0
    assert apart.itl.p99 < joined.itl.p99


def test_lockstep_ranks_wait_for_the_fullest() -> None:
    """All ranks run the same number of steps while any has work."""
    found = result("moe_lockstep", "workload.num_requests=24")
    assert len(set(found.records["replica"].tolist())) == 8


# --- the command line ---------------------------------------------------------------------------

CONTRACT = ["schema_version", "completed", "duration_s", "mean_ttft_ms", "p99_ttft_ms", "mean_tpot_ms", "mean_itl_ms",
            "mean_e2el_ms", "request_throughput", "output_throughput", "num_preemptions", "kv_peak_fraction",
            "steps", "kvplan_version", "inputs", "limited_by"]  # fmt: skip


def test_json_contract(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The documented keys, and the records' columns."""
    out = tmp_path / "out.csv"
    words = ["simulate", "chat", "--set", "workload.num_requests=20", "--records", str(out), "--json"]
    assert run(words) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [key for key in CONTRACT if key not in document] == []
    assert document["completed"] == 20
    assert "100% 20 of 20 requests" in captured.err
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 20
    assert float(rows[0]["finish_s"]) > float(rows[0]["first_token_s"]) > float(rows[0]["arrival_s"])
    for name in ("request_id", "prompt_tokens", "output_tokens", "first_visible_token_s", "num_preemptions"):
        assert name in rows[0]


def test_json_keys_do_not_depend_on_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which nothing can be served prints the same keys, with nulls."""
    assert run(["simulate", "chat", "--set", "workload.num_requests=5", "--json", "--quiet"]) == 0
    usual = json.loads(capsys.readouterr().out)
    none = ["--set", "workload.prompt=50000", "--set", "workload.num_requests=2"]
    assert run(["simulate", "chat", *none, "--json", "--quiet"]) == 1
    empty = json.loads(capsys.readouterr().out)
    assert list(empty) == list(usual)
    assert empty["mean_ttft_ms"] is None
    assert empty["finish_reasons"]["rejected"] == 2


def test_bench_block_has_vllms_labels_in_vllms_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(["simulate", "chat", "--num-prompts", "12", "--quiet", "--goodput", "ttft:2000", "tpot:50"]) == 0
    )
    text = capsys.readouterr().out
    labels = ["Successful requests:", "Failed requests:", "Request rate configured (RPS):", "Benchmark duration (s):",
              "Total input tokens:", "Total generated tokens:", "Request throughput (req/s):",
              "Request goodput (req/s):", "Output token throughput (tok/s):", "Peak output token throughput (tok/s):",
              "Peak concurrent requests:", "Total token throughput (tok/s):", "Time to First Token", "Mean TTFT (ms):",
              "Median TTFT (ms):", "P99 TTFT (ms):", "Time per Output Token (excl. 1st token)", "Mean TPOT (ms):",
              "Inter-token Latency", "Mean ITL (ms):", "End-to-end Latency", "Mean E2EL (ms):",
              "Reasoning"]  # fmt: skip
    places = [text.find(label) for label in labels]
    assert -1 not in places
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("workload.arivals={kind: poisson}", "workload.arivals: unknown key; did you mean arrivals?"),
        (
            "workload.arrivals={kind: poisson, rate: -1}",
            "workload.arrivals.rate: Input should be greater than 0",
        ),
        ("engine.max_num_sqs=4", "engine.max_num_sqs: unknown key; did you mean max_num_seqs"),
        ("engine.hf_config_path=x", "engine.hf_config_path: unknown key\n"),
        ("gpu=h1000", "h1000"),
        ("model=Qwen/Qwen3-9B", "Qwen3-9B"),
        ("limits.horizon_s=1e15", "limits.horizon_s: Input should be less than"),
        ("workload.num_requests=0", "workload.num_requests: Input should be greater"),
        ("workload.prompt=-5", "workload.prompt.value: Input should be greater"),
        ("workload.answer=12q", "'12q' is not a count"),
        ("workload.prompt={kind: lognormal, median: .nan, sigma: 1}", "workload.prompt.median"),
        ("workload.trace={path: none.csv, format: csv}", "a trace brings its own lengths"),
        ("step_time={profile: nowhere}", "nowhere"),
        ("models={big: {modle: x}}", "models.big.modle: unknown key; did you mean model"),
    ],
)
def test_bad_input_is_one_line(override: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, the key's path, what is wrong, no traceback."""
    assert run(["simulate", "chat", "--set", override, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: [", "not YAML"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("model: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("[" * 3_000, "nested too deeply"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
         "c: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
         "e: &e [*d, *d, *d, *d, *d, *d, *d, *d]\nf: [*e, *e, *e, *e, *e, *e, *e, *e]\n", "more than 200000 values"),
        ("gpu: h100\n", "model: is needed"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Broken, hostile and empty files: exit 2, one line, no code is run."""
    path = tmp_path / "s.yaml"
    path.write_text(text)
    assert run(["simulate", str(path)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_missing_file_offers_the_closest() -> None:
    with pytest.raises(KvplanError, match="did you mean long_thinking"):
        load_scenario("long_thinkin")


def test_dump_is_the_scenario(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The dumped file loads to the same scenario."""
    loaded = load_scenario("priorities", ["engine.max_num_seqs=7"])
    path = tmp_path / "priorities.yaml"
    path.write_text(dump_scenario(loaded))
    again = load_scenario(path)
    assert again.model_dump() == loaded.model_dump()
    assert run(["simulate", "chat", "--request-rate", "inf", "--seed", "9", "--dump-scenario"]) == 0
    assert "all_at_once" in capsys.readouterr().out


def test_a_result_in_a_notebook() -> None:
    """A DataFrame with a row per request, and a small table."""
    found = result("chat", "workload.num_requests=24")
    frame = found.to_frame()
    assert len(frame) == 24
    assert {"class", "arrival_s", "kv_gib_s", "finish_reason"} <= set(frame.columns)
    assert "24 of 24 completed" in found._repr_html_()


def test_no_engine_no_run() -> None:
    """A model that does not fit its card is an answer: exit 1."""
    assert run(["simulate", "chat", "--set", "gpu=t4", "--quiet"]) == 1


def test_step_time_needs_time() -> None:
    with pytest.raises(KvplanError, match="must take time"):
        parse_scenario({"model": "x", "step_time": {"fixed_us": 0}})
