"""What an engine adds around its kernels, fitted and judged on real servers; writes docs/validation/engine.md.

    python benchmarks/validate_engine.py ../shared/truth [--fit-only] [--every 1]

`--fit-only` refits and writes nothing; `--every 4` simulates one steady point in four.

Decode steps of ML.ENERGY's steady points (vLLM 0.11.1) are told from a card's kernel tables and the terms of
`catalog/engine_terms.yaml`, refitted with one model family left out at a time; each point is then simulated as it was
taken, with the terms that never saw its family. BLIS's runs (vLLM 0.15.1) and LLMServingSim's (0.19) are simulated with
the terms of their versions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import TICKS_PER_S
from kvplan.models.load import load_model
from kvplan.profiles import engine_terms, step_times
from kvplan.profiles.engine_terms import EngineTerms, Ranged
from kvplan.scenario.schema import parse_scenario
from kvplan.simulation import metrics
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import StepShape

Array = NDArray[np.float64]
Row = dict[str, Any]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation" / "engine.md"

CARDS = {"H100": "h100", "B200": "b200"}
FAMILIES = {
    "Qwen3-30B": "Qwen3-30B", "Qwen3-Coder-30B": "Qwen3-30B", "Qwen3-235B": "Qwen3-235B",
    "Qwen3-Coder-480B": "Qwen3-480B", "Llama-3.1-405B": "Llama-405B",
}  # fmt: skip
"""Checkpoints of one shape are one family; all others are their own."""
PROMPTS = {"gpqa": 230, "lm-arena-chat": 250, "sourcegraph-fim": 2000}
"""Tokens. The data do not state them: what fits their mean steps best."""
SAME_SHAPE = {"Qwen/Qwen3-Coder-30B-A3B-Instruct": "Qwen/Qwen3-30B-A3B-Instruct-2507"}
NAMES = (
    "layer_us",
    "tensor_parallel_us",
    "sequence_us",
    "sampled_us",
    "fp8_experts_us",
    "blackwell_bf16_experts",
)
HUBER = 0.06


class Point(NamedTuple):
    """One steady point and what its decode step is made of."""

    row: Row
    family: str
    kernels_s: float
    terms: Array
    """Seconds per unit of each term of `NAMES`."""

    @property
    def itl_s(self) -> float:
        return float(self.row["median_itl_ms"]) * 1e-3


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.open()]


def family(model: str) -> str:
    name = model.rpartition("/")[2]
    return next((v for k, v in FAMILIES.items() if name.startswith(k)), name)


def is_contended(row: Row) -> bool:
    """A lone B200 of that machine: its 90th percentile is far above the median at every batch."""
    return row["gpu"] == "B200" and row["num_gpus"] == 1


def largest_graph(row: Row) -> int:
    return min(512, 2 * int(row["max_num_seqs"]))


def is_clean(row: Row) -> bool:
    """Steady decode inside the CUDA graphs, at most 0.6 new prompts a step, on one data-parallel rank."""
    prompts_a_step = row["avg_batch_size"] / row["avg_output_len"]
    inside = row["avg_batch_size"] <= largest_graph(row)
    return not is_contended(row) and row["data_parallel"] == 1 and inside and prompts_a_step <= 0.6


def engine_args(row: Row) -> dict[str, Any]:
    """The server's flags as the benchmark's scripts set them: tensor parallel, experts spread where the flag is set."""
    flags = row["server_flags"]
    num = int(row["num_gpus"])
    return {
        "tensor_parallel_size": num // int(row["data_parallel"]), "data_parallel_size": int(row["data_parallel"]),
        "enable_expert_parallel": bool(flags.get("enable-expert-parallel")) and num > 1,
        "max_num_seqs": int(row["max_num_seqs"]), "max_num_batched_tokens": int(flags["max-num-batched-tokens"]),
    }  # fmt: skip


def lengths(row: Row) -> Array:
    """The middles of the published histogram of output lengths, each as often as it came."""
    bins, counts = np.array(row["output_len_bins"]), np.array(row["output_len_counts"])
    middles = bins if len(bins) == len(counts) else (bins[1:] + bins[:-1]) / 2
    found: Array = np.repeat(middles, counts)
    return found


def mean_context(row: Row, seeds: int = 4) -> float:
    """Median over steps of the running sequences' mean context, all clients starting at once, until none waits."""
    pool, batch, found = lengths(row), round(row["avg_batch_size"]), []
    for seed in range(seeds):
        drawn = np.random.default_rng(seed).permutation(np.resize(pool, max(len(pool), batch + 1)))
        ends, starts = drawn[:batch].copy(), np.zeros(batch)
        times, means = [0.0], [0.0]
        for length in drawn[batch:]:
            first = int(ends.argmin())
            now = float(ends[first])
            starts[first], ends[first] = now, now + length
            times.append(now)
            means.append(float(starts.mean()))
        steps = np.linspace(0, ends.min(), 2000)
        found.append(
            float(np.median(steps - np.array(means)[np.searchsorted(times, steps, side="right") - 1]))
        )
    return PROMPTS[row["task"]] + float(np.mean(found))


def point(row: Row) -> Point | None:
    """A point's kernels and how much of each term it has; None for a model that is not bundled."""
    try:
        model = load_model(SAME_SHAPE.get(row["model"], row["model"]))
    except KvplanError:
        return None
    gpu, args = get_gpu(CARDS[row["gpu"]]), EngineArgs(**engine_args(row))
    num = round(row["avg_batch_size"])
    bare = with_values(None, **dict.fromkeys(NAMES, 0.0) | {"blackwell_bf16_experts": 1.0})
    shape = StepShape(num, num, round(num * mean_context(row)))

    def seconds(terms: EngineTerms) -> float:
        with using(terms):
            return (
                step_times.make_step_times(model, gpu, args, engine="vllm@0.11").time.ticks(shape)
                / TICKS_PER_S
            )

    kernels = seconds(bare)
    each = [seconds(with_values(bare, **{name: 1.0 + (name == NAMES[-1])})) - kernels for name in NAMES]
    return Point(row, family(row["model"]), kernels, np.array(each))


def with_values(terms: EngineTerms | None, **values: float) -> EngineTerms:
    """The terms of vLLM 0.11 with other values."""
    base = terms or engine_terms.find_terms(parse_engine("vllm@0.11"))
    assert base is not None
    return base.model_copy(update={name: Ranged(v, v, v) for name, v in values.items()})


class using:  # noqa: N801
    """These terms instead of the catalog's, for every engine."""

    def __init__(self, terms: EngineTerms) -> None:
        self.terms, self.found = terms, engine_terms.find_terms

    def __enter__(self) -> None:
        engine_terms.find_terms = lambda engine: self.terms

    def __exit__(self, *_: object) -> None:
        engine_terms.find_terms = self.found


def fit(points: list[Point]) -> Array:
    """Positive terms: least squares of relative errors, every family weighing alike, outliers beyond 6 % less."""
    from scipy.optimize import nnls

    measured = np.array([p.itl_s for p in points])
    families = [p.family for p in points]
    weight = 1 / measured / np.sqrt([families.count(f) for f in families])
    terms, kernels = np.array([p.terms for p in points]), np.array([p.kernels_s for p in points])
    trust, found = np.ones(len(points)), np.zeros(len(NAMES))
    for _ in range(12):
        found, _ = nnls(terms * (weight * trust)[:, None], (measured - kernels) * weight * trust)
        error = np.abs(terms @ found + kernels - measured) / measured
        trust = np.sqrt(np.minimum(1, HUBER / np.maximum(error, 1e-9)))
    return found


def left_out_fits(points: list[Point]) -> dict[str, Array]:
    return {f: fit([p for p in points if p.family != f]) for f in sorted({p.family for p in points})}


def as_terms(values: Array) -> EngineTerms:
    named = dict(zip(NAMES, values.tolist(), strict=True))
    return with_values(None, **named | {NAMES[-1]: 1 + named[NAMES[-1]]})


class Taken(NamedTuple):
    """A point simulated as it was taken; milliseconds, tokens per second."""

    row: Row
    family: str
    median_itl_ms: float
    p95_itl_ms: float
    output_tokens_per_s: float

    def error(self, name: str) -> float:
        return float(getattr(self, name)) / float(self.row[name]) - 1


def simulated(row: Row, terms: EngineTerms) -> Taken:
    """All clients at once, the published lengths, until no request waits."""
    pool, batch = lengths(row), round(row["avg_batch_size"])
    num = max(len(pool), batch + 1)
    spec = {
        "model": SAME_SHAPE.get(row["model"], row["model"]), "gpu": CARDS[row["gpu"]], "engine_version": "0.11",
        "engine": engine_args(row) | {"max_model_len": "auto", "async_scheduling": True},
        "frontend": "none",  # the figures are the server's steps, by its own clock
        "workload": {
            "num_requests": num, "arrivals": {"kind": "closed_loop", "concurrency": int(row["max_num_seqs"])},
            "prompt": PROMPTS[row["task"]],
            "answer": {"kind": "empirical", "values": [int(x) for x in pool]},
        },
    }  # fmt: skip
    seen: list[tuple[int, ...]] = []
    add = metrics.TokenMeter.add
    metrics.TokenMeter.add = lambda self, *leap: seen.append(leap)  # type: ignore[method-assign]
    try:
        with using(terms):
            result = simulate(parse_scenario(spec))
    finally:
        metrics.TokenMeter.add = add  # type: ignore[method-assign]
    until = int(result.records["scheduled"].max())
    first, last, decodes, steps, _, end = np.array([leap for leap in seen if leap[5] <= until], float).T
    pieces = np.linspace(0, 1, 9)
    itl = (first[:, None] + (last - first)[:, None] * pieces).ravel()
    weight = np.repeat(decodes * steps / len(pieces), len(pieces))
    order = np.argsort(itl)
    share = np.cumsum(weight[order]) / weight.sum()
    median, p95 = (itl[order][np.searchsorted(share, q)] * 1e3 / TICKS_PER_S for q in (0.5, 0.95))
    rate = float((decodes * steps).sum()) / end.max() * TICKS_PER_S
    return Taken(row, family(row["model"]), float(median), float(p95), rate)


CODE_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 22016,
    "num_hidden_layers": 48, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 32000,
    "max_position_embeddings": 16384, "rope_theta": 1000000, "torch_dtype": "bfloat16",
}  # fmt: skip
"""config.json of codellama/CodeLlama-34b-Instruct-hf."""
BLOCK = 16


class Stage(NamedTuple):
    """One stage of one of BLIS's runs; seconds, measured and simulated."""

    run: str
    number: int
    num_failed: int
    measured: dict[str, float]
    simulated: dict[str, float]

    def error(self, name: str) -> float:
        return self.simulated[name] / self.measured[name] - 1


def trace_rows(run: Row) -> list[Row]:
    """BLIS's client: a hundred prompts in turn, ten to a system prompt, at constant rates."""
    client, rows, start = run["client"], [], 0.0
    for stage, measured in zip(run["stages"], run["measured_by_stage"], strict=True):
        length = round(measured["prompt_len_mean"])
        shared = client["system_prompt_len"] // BLOCK
        for i in range(int(stage["duration"] * stage["rate"])):
            prompt = len(rows) % 100
            ids = [10**6 * (1 + prompt // 10) + b for b in range(shared)]
            ids += [10**8 + 10**4 * prompt + b for b in range(length // BLOCK - shared)]
            ids += [10**10 + len(rows)] if length % BLOCK else []
            rows.append({"timestamp": 1e3 * (start + i / stage["rate"]), "input_length": length,
                         "output_length": client["output_len"], "hash_ids": ids})  # fmt: skip
        start += stage["duration"]
    return rows


def replay(run: Row) -> list[Stage]:
    """One run as it was taken; clients of overloaded runs give up after 300 s."""
    flags, stages = run["flags"], run["measured_by_stage"]
    with tempfile.TemporaryDirectory() as folder:
        trace, model = Path(folder) / "trace.jsonl", Path(folder) / "codellama.json"
        trace.write_text("".join(f"{json.dumps(row)}\n" for row in trace_rows(run)))
        model.write_text(json.dumps(CODE_LLAMA))
        timeout = {"timeout_s": 300} if any(s["failed"] for s in stages) else {}
        spec = {
            "model": str(model) if "codellama" in flags["model"] else flags["model"], "gpu": "h100",
            "engine_version": "0.15",
            "engine": {
                "max_num_seqs": flags["max_num_seqs"], "max_num_batched_tokens": flags["max_num_batched_tokens"],
                "max_model_len": flags["max_model_len"], "gpu_memory_utilization": 0.9,
                "tensor_parallel_size": flags["tensor_parallelism"],
            },
            "workload": {"trace": {"path": str(trace), "format": "mooncake", "block_size": BLOCK}, "stop": "length"}
            | timeout,
        }  # fmt: skip
        records = simulate(parse_scenario(spec)).records
    ends = np.cumsum([stage["duration"] for stage in run["stages"]])
    number = np.searchsorted(ends, records["arrival"][records.completed] / TICKS_PER_S, side="right")
    times, steps = metrics.latencies(records), run["client"]["output_len"] - 1
    found = []
    for i, stage in enumerate(stages):
        mine = number == i
        e2e, ttft = times.e2el[mine].mean() / 1e3, times.ttft[mine].mean() / 1e3
        real_e2e, real_ttft = stage["e2e_s"]["mean"], stage["ttft_s"]["mean"]
        found.append(Stage(
            run["run"], i, stage["failed"],
            {"E2E": real_e2e, "TTFT": real_ttft, "TPOT": (real_e2e - real_ttft) / steps},
            {"E2E": float(e2e), "TTFT": float(ttft), "TPOT": float(e2e - ttft) / steps},
        ))  # fmt: skip
    return found


def spread(errors: list[float] | Array) -> str:
    size = np.abs(errors)
    return f"{np.median(size):.1%} | {np.quantile(size, 0.9):.1%} | {np.median(errors):+.1%}"


FIGURES = {"median_itl_ms": "median ITL", "p95_itl_ms": "p95 ITL", "output_tokens_per_s": "tokens/s"}


def taken_table(taken: list[Taken]) -> str:
    lines = ["| figure | points | points taken | median | p90 | bias |", "|---|---|---|---|---|---|"]
    for name, title in FIGURES.items():
        for which, some in (("all", taken), ("GPQA", [t for t in taken if t.row["task"] == "gpqa"])):
            lines.append(f"| {title} | {which} | {len(some)} | {spread([t.error(name) for t in some])} |")
    return "\n".join(lines)


def family_table(taken: list[Taken]) -> str:
    lines = [
        "| family left out | card | points | median ITL: median | p90 | bias |",
        "|---|---|---|---|---|---|",
    ]
    for name, card in sorted({(t.family, t.row["gpu"]) for t in taken}):
        errors = [t.error("median_itl_ms") for t in taken if (t.family, t.row["gpu"]) == (name, card)]
        lines.append(f"| {name} | {card} | {len(errors)} | {spread(errors)} |")
    return "\n".join(lines)


def worst_table(taken: list[Taken], most: int = 8) -> str:
    lines = [
        "| model | task | GPUs | batch | measured ms | simulated | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for t in sorted(taken, key=lambda t: -abs(t.error("median_itl_ms")))[:most]:
        row = t.row
        lines.append(
            f"| {row['model'].rpartition('/')[2]} | {row['task']} | {row['num_gpus']} {row['gpu']} | "
            f"{row['avg_batch_size']:.0f} | {row['median_itl_ms']:.1f} | {t.median_itl_ms:.1f} | "
            f"{t.error('median_itl_ms'):+.0%} |"
        )
    return "\n".join(lines)


def terms_table(whole: Array, fits: Mapping[str, Array]) -> str:
    lines = ["| term | all families | lowest | highest |", "|---|---|---|---|"]
    for i, name in enumerate(NAMES):
        plus = 1.0 if name == NAMES[-1] else 0.0
        values = [whole[i], min(f[i] for f in fits.values()), max(f[i] for f in fits.values())]
        lines.append(f"| {name} | {' | '.join(f'{plus + v:.3g}' for v in values)} |")
    return "\n".join(lines)


def stages_table(stages: list[Stage]) -> str:
    lines = ["| run | stage | timed out | TPOT | E2E | TTFT |", "|---|---|---|---|---|---|"]
    for s in stages:
        each = " | ".join(f"{s.error(name):+.1%}" for name in ("TPOT", "E2E", "TTFT"))
        lines.append(f"| {s.run} | {s.number + 1} | {s.num_failed:,} | {each} |")
    calm = [s for s in stages if not s.num_failed]
    for name in ("TPOT", "E2E", "TTFT"):
        lines.append(
            f"| median of {len(calm)} without timeouts, {name} | | | {spread([s.error(name) for s in calm])} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    parser.add_argument("--fit-only", action="store_true", help="refit, print, write nothing")
    parser.add_argument("--every", type=int, default=1, help="simulate one steady point in so many")
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores")
    args = parser.parse_args()
    serving = args.truth / "serving"
    rows = [row for row in read_rows(serving / "mlenergy" / "points.jsonl") if is_clean(row)]
    points = [p for row in rows if (p := point(row)) is not None]
    fits, whole = left_out_fits(points), fit(points)
    closed = [float((p.terms @ fits[p.family] + p.kernels_s) / p.itl_s - 1) for p in points]
    alone = [p.kernels_s / p.itl_s - 1 for p in points]
    print(
        terms_table(whole, fits), f"closed form: {spread(closed)}; kernels alone: {spread(alone)}", sep="\n"
    )
    if args.fit_only:
        return
    chosen = points[:: args.every]
    with ProcessPoolExecutor(args.workers) as workers:
        found = workers.map(simulated, [p.row for p in chosen], [as_terms(fits[p.family]) for p in chosen])
        taken = list(found)
        stages = [s for run in workers.map(replay, read_rows(serving / "blis" / "runs.jsonl")) for s in run]
    text = f"""# Engines around their kernels

Made by `benchmarks/validate_engine.py`. What an engine adds to a step, by version, is in `catalog/engine_terms.yaml`.

## vLLM 0.11.1: terms fitted to whole steps

ML.ENERGY's steady points (H100, B200). Of {len(rows)} clean points (inside the CUDA graphs, at most 0.6 new prompts a
step, no data parallelism, not on a lone B200, whose machine was contended) {len(points)} have a bundled model. Ranges
are over fits that left one family out. Microseconds; the last is a factor.

{terms_table(whole, fits)}

In closed form, a family left out: {spread(closed)} (median, p90, bias); kernels alone: {spread(alone)}.

Simulated as taken (all clients at once, published lengths, until no request waits) with the terms that never saw the
point's family{"" if args.every == 1 else f"; one point in {args.every}"}:

{taken_table(taken)}

{family_table(taken)}

The worst:

{worst_table(taken)}

Forms that were tried in closed form on the same points and dropped (median, 90th percentile of errors against 4.6 and
11.4 % of the sum): the larger of CPU and GPU 7.8 and 21.9 %, their 2-norm 5.4 and 11.9 %, a constant of the step (it
fits 0), sampling by vocabulary (4.8 and 12.0 %), factors on attention (1.03), products (0.92) and exchanges (0.87),
which gain nothing, uneven experts (1.05), padded graphs and piecewise graphs (10 us a layer at most), experts by bytes
(6.7 and 22.0 %).

What stays off: fp8 mixtures at small batches on few GPUs (their experts took longer then than any table says); bf16
mixtures on B200, whose kernels of then are not in the tables; Qwen3 on H100 from 96 sequences on, where steps jump by
3 to 4 ms that nothing here explains; p95 of points where one step in twenty holds a prompt, which decides it.

## vLLM 0.15.1: nothing fitted

BLIS's runs on H100 (constant rates, 100 prompts in turn, so prefixes hit; a client waits 300 s). Kernel tables, and
the tensor-parallel waiting of 0.11; the API server as vLLM 0.32's.

Overloaded runs queue, and a queue makes many times as much of the step's error: with a load of 1.06 times what is
sustained here, 13 % of CodeLlama's step are 73 % of its time to the first token. Those steps hold 128 sequences of
1,100 to 2,500 tokens and take 27 and 30 ms there (CodeLlama, Llama-70B), 13 and 12 % longer than told; where contexts
are shorter CodeLlama's are 8 % shorter. Tried: pools down to 0.6 of the planned one change nothing. Without prefix hits
both runs would be told within 7 % (E2E +5.9 and +4.0 %), but one step in ten would then hold a prompt, and 98 % of the
measured ones are within 32 and 33 ms. Mixtral's experts are slower than its table by 0.3 ms a layer, Llama-7B preempts.

{stages_table(stages)}
"""
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
