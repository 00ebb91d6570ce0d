"""Charts show the rows they are given: sums, limits with names, units on axes, colours that anybody can tell apart."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml
from places import TRUTH
from simulation.test_file_tiers import tiers
from simulation.test_simulate_offloading import scenario

pytest.importorskip("altair")

from kvplan.charts import drawing, fits, plans, runs, searches
from kvplan.charts.drawing import EDGE, PALE, PALETTE, gathered
from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import get_gpu
from kvplan.memory.demand import Demand
from kvplan.memory.forward import concurrency_curve, estimate
from kvplan.models.load import find_bundled
from kvplan.profiles.profile import bundled_profiles
from kvplan.scenario.schema import load_scenario, parse_scenario
from kvplan.search.comparison import Comparison, compare
from kvplan.search.recommending import recommend
from kvplan.simulation.block_map import BlockMap
from kvplan.simulation.branches import BranchNotes, Node, tree
from kvplan.simulation.observer import Observer
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate


def rows_of(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All rows of all data of a chart."""
    for data in [*spec.get("datasets", {}).values(), spec.get("data", {}).get("values", [])]:
        yield from data
    for part in ("layer", "vconcat", "hconcat"):
        for one in spec.get(part, []):
            yield from rows_of(one)


def limits(spec: dict[str, Any]) -> dict[str, float]:
    """The rules of a chart: name -> value."""
    return {row["name"]: row["limit"] for row in rows_of(spec) if "limit" in row}


def titles(spec: dict[str, Any]) -> list[str]:
    """All axis titles of a chart."""
    found = [c["title"] for c in spec.get("encoding", {}).values() if isinstance(c, dict) and c.get("title")]
    return found + [t for part in ("layer", "vconcat") for one in spec.get(part, []) for t in titles(one)]


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(load_scenario("kv_starved", ["workload.num_requests=50", "slo.ttft_ms=800"]))


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(
        load_scenario("strategy_thinking_budget", ["problems.num_problems=8", "slo.e2el_ms=90000"])
    )


def test_memory_bar_shows_every_row_and_the_limits() -> None:
    """Segments sum to the card's total; the rules carry names."""
    plan = estimate("Qwen/Qwen3-8B", "h100")
    spec = plans.memory_bar(plan).to_dict()
    assert sum(r["gib"] for r in rows_of(spec) if "use" in r) == pytest.approx(
        plan.budget.total.size.value / 2**30
    )
    assert {name.split()[0] for name in limits(spec)} == {"card", "budget"}
    assert "GiB of one GPU" in titles(spec)


def test_concurrency_marks_the_question_and_the_limit() -> None:
    plan = estimate("Qwen/Qwen3-8B", "h100", demand=Demand(input_len=512, output_len=4096))
    lengths = (600, 4608, 40_000)
    spec = plans.concurrency(plan, lengths, concurrency_curve(plan, lengths)).to_dict()
    drawn = {r["tokens"]: r for r in rows_of(spec) if "low" in r}
    assert drawn[4608]["traces"] == plan.traces.value
    assert drawn[4608]["low"] <= drawn[4608]["traces"] <= drawn[4608]["high"]
    assert {r["tokens"] for r in rows_of(spec) if "yours" in r.get("name", "")} == {plan.trace_tokens}
    small = estimate("Qwen/Qwen3-0.6B", "h200", demand=Demand(input_len=16, output_len=16))
    spec = plans.concurrency(small, (32, 64), concurrency_curve(small, (32, 64))).to_dict()
    assert limits(spec) == {f"max_num_seqs {small.args.max_num_seqs:,}": small.args.max_num_seqs}


def test_a_run_is_drawn_as_it_was(result: Result) -> None:
    """Every sample by kind, the pool as a rule; every request's phases join without a gap from arrival to finish."""
    spec = runs.kv_over_time(result).to_dict()
    kinds = [r for r in rows_of(spec) if r.get("kind") in runs.KV_KINDS]
    assert sum(r["tokens"] for r in kinds if r["kind"] == "thinking") == sum(
        s.thinking_tokens for s in result.samples
    )
    assert list(limits(spec).values()) == [result.pool.num_blocks * result.pool.block_size]
    queue = runs.queue_over_time(result).to_dict()
    preempted = [r["count"] for r in rows_of(queue) if r.get("what") == "preemptions so far"]
    assert preempted == sorted(preempted)
    assert preempted[-1] <= result.totals.preemptions
    lanes = runs.request_timeline(result.records, count=50).to_dict()
    columns = result.records.columns()
    for i, request in enumerate(columns["request_id"]):
        phases = [r for r in rows_of(lanes) if r.get("request") == request and "phase" in r]
        assert phases[0]["start_s"] == columns["arrival_s"][i]
        assert max(p["end_s"] for p in phases) == columns["finish_s"][i]
    few = runs.request_timeline(result.records, first=5, count=10).to_dict()
    assert (
        few["layer"][0]["encoding"]["y"]["sort"]
        == sorted((int(i) for i in columns["request_id"]), key=lambda i: columns["arrival_s"][i])[5:15]
    )
    names = {layer["mark"]["align"]: [r["time_s"] for r in rows_of(layer)] for layer in queue["layer"][1:]}
    last = max(r["time_s"] for r in rows_of(queue))
    assert all(time < 0.1 * last for time in names.get("left", []))  # a name stands inside the chart
    assert all(time >= 0.9 * last for time in names.get("right", []))
    assert sum(map(len, names.values())) == 3
    highest = max(r["count"] for r in rows_of(queue))
    assert queue["layer"][0]["encoding"]["y"]["scale"]["domain"][1] > highest


def test_a_pool_far_above_leaves_what_is_held_to_see(result: Result) -> None:
    """A pool of many times what was held is named and no rule: the picture is as high as what was held."""
    most = max(s.used_blocks for s in result.samples)
    near, far = (
        runs.kv_over_time(replace(result, pool=replace(result.pool, num_blocks=n))).to_dict()
        for n in (2 * most, 2 * runs.FAR * most)
    )
    assert len(limits(near)) == 1
    assert not limits(far)
    assert any("far above" in row.get("name", "") for row in rows_of(far))


def test_a_name_stands_where_its_line_is_highest_last() -> None:
    """So that of a count that only grows it stands at the end."""
    rows = [{"what": what, "time": t, "count": n} for what, counts in
            {"grows": (0, 1, 2, 2), "peaks": (0, 3, 1, 0), "never": (0, 0, 0, 0)}.items()
            for t, n in enumerate(counts)]  # fmt: skip
    assert {row["what"]: row["time"] for row in drawing.peaks(rows, "what", "count")} == {
        "grows": 3,
        "peaks": 1,
    }


@pytest.mark.parametrize("name", runs.LATENCIES)
def test_latencies_end_at_everybody(result: Result, name: str) -> None:
    """The share rises to 1; a target is a rule, where there is one."""
    spec = runs.latency_shares(result, name).to_dict()
    shares = [r["share"] for r in rows_of(spec) if "share" in r]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert limits(spec) == ({"SLO 0.8 s": 0.8} if name == "ttft" else {})
    unit = "ms" if name == "tpot" else "s"
    assert f"{runs.LATENCIES[name]}, {unit}" in titles(spec)


@pytest.mark.parametrize(("times", "is_wide"), [(2, False), (100, True)])
def test_times_far_apart_are_drawn_by_ratios(result: Result, times: int, is_wide: bool) -> None:
    """A target far beyond what was measured squeezes no curve into a corner."""
    target = times * float(np.nanmedian(result.latencies.tpot))
    asked = replace(result, slos=[result.slos[0].model_copy(update={"tpot_ms": target})])
    x = runs.latency_shares(asked, "tpot").to_dict()["layer"][0]["encoding"]["x"]
    assert (x["scale"].get("type") == "log") == is_wide
    assert not is_wide or 2 <= len(x["axis"]["values"]) <= 6


def test_doctests() -> None:
    """Every example in the docstrings gives what it says."""
    result = doctest.testmod(drawing)
    assert result.attempted >= 3
    assert result.failed == 0


def test_dots_that_cover_each_other_share_a_text() -> None:
    """Every number stands once; two texts are never closer than a hand of pixels."""
    rows = [{"number": n, "x": x, "y": y} for n, (x, y) in
            enumerate([(0, 0), (100, 1), (99, 0.999), (50, 0.5), (0, 1), (None, 1)], 1)]  # fmt: skip
    found = gathered(rows, "x", "y")
    assert [place["numbers"] for place in found] == ["1", "2, 3", "4", "5"]


@pytest.mark.parametrize("most", [1, 2, 48])
def test_a_tree_of_few_rows_has_room_for_bars(most: int) -> None:
    """Below 50 pixels are axis and title: each row has ten of its own or more."""
    nodes = [Node(i, None if i == 0 else 0, int(i > 0), "sample", 10, 0, 20, "stop", False, 0.0, 1.0)
             for i in range(most)]  # fmt: skip
    height = runs.branch_tree(nodes, most).to_dict()["height"]
    assert height - 55 >= 10 * most


def test_a_block_has_one_cell_and_its_owners_colour() -> None:
    blocks = BlockMap()
    simulate(load_scenario("block_map"), step_by_step=True, observer=Observer(on_sample=blocks.look))
    moment = blocks.moments[len(blocks.moments) // 2]
    cells = list(rows_of(runs.block_map(blocks, moment).to_dict()))
    assert len(cells) == blocks.high_water
    shared = {i for e in moment.replicas[0] if len(e.owners) > 1 for i in range(e.first, e.first + e.length)}
    assert {int(cell["block"]) for cell in cells if cell["state"] == "shared"} == shared
    assert next(cell for cell in cells if cell["block"] == "0")["state"] == "free"


def test_a_tier_is_drawn_as_it_was() -> None:
    """Its fill under the rule of all slots, what moved up to the run's sums; at a moment all slots in three states."""
    told = ["workload.num_requests=6", "engine.num_gpu_blocks_override=2600", "engine.kv_offloading_size=9"]
    blocks = BlockMap()
    result = simulate(
        load_scenario("offload_tools", told), step_by_step=True, observer=Observer(on_sample=blocks.look)
    )
    tier = result.offload
    assert tier is not None
    spec = runs.tier_over_time(result).to_dict()
    fill = [row["chunks"] for row in rows_of(spec) if "chunks" in row]
    assert fill == [s.tier_chunks for s in result.samples]
    assert limits(spec) == {f"host memory {tier['chunks']:,} chunks": tier["chunks"]}
    moved = list(rows_of(runs.copies_over_time(result).to_dict()))
    for what in runs.COPIED:
        so_far = [row["gib"] for row in moved if row["what"] == what]
        assert so_far == sorted(so_far)
        assert 0 < so_far[-1] <= tier[f"{what}_bytes_per_rank"] / 2**30
    assert any(moment.tiers[0].moving for moment in blocks.moments if moment.tiers[0] is not None)
    for moment in blocks.moments[::16]:
        slots = [row["slots"] for row in rows_of(runs.tier_slots(moment).to_dict())]
        assert sum(slots) == tier["chunks"]
        assert min(slots) >= 0


def test_files_below_host_memory_are_drawn_as_they_were() -> None:
    """Their fill beside host memory's, both in the legend; jobs each way; at a moment every chunk in one place."""
    told = scenario(engine={"kv_offloading_size": 0.5}, kv_offloading=tiers(read_gb_s=0.8, write_gb_s=0.2))
    blocks = BlockMap()
    result = simulate(parse_scenario(told), step_by_step=True, observer=Observer(on_sample=blocks.look))
    tier = result.offload
    assert tier is not None
    spec = runs.tier_over_time(result).to_dict()
    for name, counts in zip(runs.TIER_COLOURS, ("tier_chunks", "files"), strict=True):
        drawn = [row["chunks"] for row in rows_of(spec) if row.get("tier") == name]
        assert drawn == [getattr(sample, counts) for sample in result.samples]
        assert max(drawn) > 0
    assert [layer["encoding"]["color"]["legend"]["orient"] for layer in spec["layer"][:2]] == ["top", "top"]
    jobs = list(rows_of(runs.file_jobs_over_time(result).to_dict()))
    for what, counts in zip(runs.FILE_JOBS, ("file_reads", "file_writes"), strict=True):
        drawn = [row["jobs"] for row in jobs if row.get("what") == what and "time_s" in row]
        assert [getattr(sample, counts) for sample in result.samples] == drawn[: len(result.samples)]
        assert max(drawn) > 0
    for moment in blocks.moments[::16]:
        host, both, files = (row["chunks"] for row in rows_of(runs.chunk_places(moment).to_dict()))
        slots = moment.tiers[0]
        assert slots is not None
        assert host + both == slots.moving + slots.resting
        assert min(host, both, files) >= 0
    sample = next(s for s in result.samples if s.time_s == blocks.moments[-1].time_s)
    assert blocks.moments[-1].places[0] is not None
    assert blocks.moments[-1].places[0].both + blocks.moments[-1].places[0].files_only == sample.files


def test_strategies_are_drawn_as_compared(comparison: Comparison) -> None:
    """A dot each, the front as the table has it, the limit and the caps as rules."""
    spec = searches.pareto(comparison).to_dict()
    dots = {r["strategy"]: r for r in rows_of(spec) if "strategy" in r}
    assert {n: d["front"] == "on the front" for n, d in dots.items()} == {
        r.strategy: r.pareto for r in comparison.rows
    }
    assert limits(spec) == {"limit 90 s": 90}
    numbers = [n for r in rows_of(spec) if "numbers" in r for n in r["numbers"].split(", ")]
    assert sorted(map(int, numbers)) == list(range(1, len(comparison.rows) + 1))
    assert [line.split("  ")[0] for line in spec["title"]["text"][: len(numbers)]] == sorted(numbers)
    sweep = searches.budget_sweep(comparison, "accuracy").to_dict()
    assert {r["budget"] for r in rows_of(sweep) if "budget" in r} == {1024, 4096, 8192, 16384}
    assert limits(sweep) == {
        "p99 of traces": comparison.caps["p99_of_traces"],
        "cheapest": comparison.caps["cost_optimal"],
    }
    bars = searches.correct_per_gpu_hour(comparison).to_dict()
    per_hour = {r["strategy"]: r["correct_per_gpu_hour"] for r in rows_of(bars)}
    for row in comparison.rows:
        if row.gpu_s_per_correct:
            assert per_hour[row.strategy] == pytest.approx(3600 / row.gpu_s_per_correct)


def test_numbers_of_neighbours_share_a_place() -> None:
    """Of dots nearer to each other than a number is large one place has both numbers; others have their own, whatever
    the order."""
    at = [(10, 0.500), (10.2, 0.505), (50, 0.9), (100, 0.1), (99, 0.5)]
    rows = [
        {"number": number, "latency_p99_s": x, "latency_p99_s_low": x, "latency_p99_s_high": x, "accuracy": y,
         "accuracy_low": y - 0.02, "accuracy_high": y + 0.02}
        for number, (x, y) in enumerate(at, 1)
    ]  # fmt: skip
    for order in (rows, rows[::-1]):
        found = searches.numbers_of(order)
        assert sorted(place["numbers"] for place in found) == ["1, 2", "3", "4", "5"]
        assert {"latency_p99_s": 10.2, "accuracy": 0.5, "numbers": "1, 2"} in found


def test_a_branch_is_as_long_as_its_sequence() -> None:
    notes = BranchNotes()
    found = simulate(load_scenario("block_map"), observer=Observer(on_branch=notes.start))
    nodes = tree(notes, found.records, 0)
    spec = runs.branch_tree(nodes, most=len(nodes)).to_dict()  # none is folded
    [zoom] = spec["params"]
    assert (zoom["bind"], zoom["select"]["encodings"]) == ("scales", ["x"])
    for node in nodes:
        parts = [r for r in rows_of(spec) if r.get("branch") == str(node.branch) and "part" in r]
        assert sum(p["end"] - p["start"] for p in parts) == node.prompt_tokens + node.output_tokens
        assert any("pruned" in p["part"] for p in parts) == node.pruned


def test_a_ranking_is_drawn_best_first() -> None:
    """A bar per feasible candidate, in the search's order, with what limits it."""
    scenario = load_scenario("chat", ["workload.num_requests=6", "slo.ttft_ms=2000", "slo.tpot_ms=200"])
    said = scenario.model_dump(mode="json", exclude_defaults=True)
    found = recommend(
        said, {"gpu": ["l40s", "rtx-4090"]}, overrides=["search.refine=0", "search.span=1", "search.rate=1"]
    )
    rows = [row for row in rows_of(searches.ranking(found).to_dict()) if "what" in row]
    best = [candidate for candidate in found.candidates if candidate.feasible]
    assert best
    assert {row["what"]: row["usd"] for row in rows} == {str(c.settings["gpu"]): c.usd_per_hour for c in best}
    assert all(row["low"] <= row["usd"] <= row["high"] for row in rows)
    assert {row["what"] for row in rows if row["state"] == "best"} == {str(best[0].settings["gpu"])}


def test_published_points_stand_beside_predictions_of_the_same_model_and_card() -> None:
    """Hollow, with who measured them; none of another model or card."""
    load = ["workload.num_requests=6", "slo.tpot_ms=200", "model=Qwen/Qwen3-8B"]
    said = load_scenario("chat", load).model_dump(mode="json", exclude_defaults=True)
    quick = ["search.refine=0", "search.span=1", "search.rate=1"]
    for gpus, drawn in ((["h100"], {"h100-sxm"}), (["l40s"], set())):
        spec = searches.speed_and_throughput(recommend(said, {"gpu": gpus}, overrides=quick)).to_dict()
        measured = [row for row in rows_of(spec) if "source" in row]
        assert {row["what"].split()[2].rstrip(",") for row in measured} == drawn
        assert ("measured: ML.ENERGY" in json.dumps(spec)) == bool(drawn)
        if drawn:
            assert spec["layer"][0]["mark"]["filled"] is False
            assert all("Apache-2.0" in row["source"] for row in measured)


def test_published_points_name_bundled_models_and_known_cards() -> None:
    """And are of whole servers, the least batch first: what a user sees falls as batches grow."""
    deployments = yaml.safe_load((catalog_dir() / "published_points.yaml").read_text())["deployments"]
    for row in deployments:
        assert find_bundled(row["model"])
        assert get_gpu(row["gpu"]).name == row["gpu"]
        batches, rates = zip(*row["points"], strict=True)
        assert list(batches) == sorted(batches)
        assert rates[-1] / batches[-1] < 0.9 * rates[0] / batches[0]


@pytest.mark.skipif(
    not (TRUTH / "serving" / "mlenergy").is_dir(), reason="the published rows are not beside the checkout"
)
def test_published_points_are_those_of_the_benchmark() -> None:
    lines = (TRUTH / "serving" / "mlenergy" / "points.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["task"] == "gpqa"]
    told = {(r["model"], r["num_gpus"], r["avg_batch_size"], r["output_tokens_per_s"]) for r in rows
            if (r["gpu"], r["num_gpus"]) != ("B200", 1)}  # fmt: skip
    deployments = yaml.safe_load((catalog_dir() / "published_points.yaml").read_text())["deployments"]
    ours = {(d["model"], d["num_gpus"], batch, rate) for d in deployments for batch, rate in d["points"]}
    assert ours == told


@pytest.mark.parametrize("profile", bundled_profiles(), ids=lambda p: p.name)
def test_every_profile_shows_its_errors(profile: Any) -> None:
    rows = list(rows_of(fits.profile_errors([profile]).to_dict()))
    assert len(rows) == len(profile.timing.errors)


def test_colours_differ_for_everybody() -> None:
    """Any two colours that may stand for different things are apart in lightness or hue as a person without red or
    green cones sees them (Vienot, Brettel and Mollon 1999), and legible on white and on a dark page."""
    seen = [_without_reds(c) for c in PALETTE]
    for i, a in enumerate(seen):
        for b in seen[i + 1 :]:
            assert max(abs(x - y) for x, y in zip(a, b, strict=True)) > 0.06
    for colour in PALETTE:
        assert _contrast(_luminance(_linear(colour)), 0.0095) > 2.9
    assert PALE not in PALETTE


def _linear(colour: str) -> tuple[float, float, float]:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return r, g, b


def _without_reds(colour: str) -> tuple[float, float]:
    """What is left of a colour for a protanope: one red-green channel, and blue."""
    r, g, b = _linear(colour)
    return 0.112 * r + 0.888 * g, b


def _luminance(rgb: tuple[float, float, float]) -> float:
    return 0.2126 * rgb[0] + 0.7152 * rgb[1] + 0.0722 * rgb[2]


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def _leaves(count: int, parent: int | None, first: int, depth: int = 0) -> list[Node]:
    start = 0 if parent is None else 100
    return [
        Node(first + i, parent, depth, "sample", start, start, 50 + i, "stop", False, 0.0, 1.0)
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 48, 49, 500, 4096])
def test_a_family_is_folded_into_rows_that_count_it(count: int) -> None:
    """No more rows than fit, nobody left out, the longest branch still there; small trees are as they are."""
    nodes = _leaves(count, None, 0)
    families = runs.fold(nodes)
    assert sum(family.size for family in families) == count
    assert len(families) <= runs.MOST_ROWS
    assert (len(families) == count) == (count <= runs.MOST_ROWS)
    assert max(f.node.output_tokens for f in families) == 50 + count - 1


def test_limbs_of_a_deep_tree_become_rows() -> None:
    """Sixty branches of sixty each: what grew from one is a row that reaches as far as its longest."""
    trunk = _leaves(30, None, 0)
    nodes = [node for root in trunk for node in (root, *_leaves(60, root.branch, 1000 + 60 * root.branch, 1))]
    families = runs.fold(nodes)
    assert len(families) <= runs.MOST_ROWS
    assert sum(family.size for family in families) == len(nodes)


def test_what_is_filled_stands_out_from_light_and_dark() -> None:
    """The edge of filled marks: 3:1 on white and on a dark page; lines take none of the pale colours."""
    edge = _luminance(_linear(EDGE))
    assert min(_contrast(edge, 1.0), _contrast(edge, 0.0095)) > 3
    for colours in (runs.QUEUE_COLOURS, runs.COPIED):
        for colour in colours.values():
            assert min(_contrast(_luminance(_linear(colour)), base) for base in (1.0, 0.0095)) > 3
