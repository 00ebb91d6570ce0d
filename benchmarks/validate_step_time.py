"""Step time against measured serving points and published runs; writes docs/validation/step-time.md.

    python benchmarks/validate_step_time.py ../shared/truth [--every 1]

Each row of `serving/aic_silicon_sample.csv` whose card and engine have a profile and whose model is bundled is
simulated as `silicon.py` says.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.silicon import READINGS, TAKEN, Point, Reading, Row, point, sample, states_weights
from kvplan.profiles.profile import bundled_profiles

PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation" / "step-time.md"
WORST = 8
FIGURES = ("tpot", "ttft")


def spread(errors: list[float]) -> str:
    size = np.abs(errors)
    return f"{np.median(size):.1%} | {np.quantile(size, 0.9):.1%} | {np.mean(errors):+.1%}"


def silicon_table(points: list[Point], keys: Callable[[Point], tuple[str, ...]], names: str) -> str:
    """Errors by group, one line each."""
    groups: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for p in points:
        groups[keys(p)].append(p)
    columns = names.split(", ")
    lines = [
        f"| {' | '.join(columns)} | points | TPOT median | p90 | bias | TTFT median | p90 | bias |",
        "|---" * (len(columns) + 7) + "|",
    ]
    for key in sorted(groups):
        found = groups[key]
        tpot, ttft = spread([p.tpot_error for p in found]), spread([p.ttft_error for p in found])
        lines.append(f"| {' | '.join(key)} | {len(found):,} | {tpot} | {ttft} |")
    return "\n".join(lines)


def kind(p: Point) -> str:
    return "MoE" if p.moe else "dense"


def worst_table(points: list[Point], figure: str) -> str:
    lines = [f"| point | measured {figure.upper()} ms | simulated | error |", "|---|---|---|---|"]
    errors = [(getattr(p, f"{figure}_error"), p) for p in points]
    for error, p in sorted(errors, key=lambda e: -abs(np.log(1 + e[0])))[:WORST]:
        measured = float(p.row[f"silicon_{figure}_ms"])
        lines.append(f"| {p.row['id']} | {measured:,.1f} | {getattr(p, figure):,.1f} | {error:+.0%} |")
    return "\n".join(lines)


def profile_table() -> str:
    lines = [
        "| profile | engine | what | left out | points | median | p95 | bias |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in bundled_profiles():
        for e in p.timing.errors if p.timing else ():
            lines.append(
                f"| {p.name} | {p.engine} {p.engine_version} | {e.regime} ({e.family}) | {e.held_out} | "
                f"{e.num_points:,} | {e.median:.1%} | {e.p95:.1%} | {e.bias:+.1%} |"
            )
    return "\n".join(lines)


def simulate_all(rows: list[Row], reading: Reading = TAKEN, num_workers: int | None = None) -> list[Point]:
    with ProcessPoolExecutor(num_workers) as workers:
        found = workers.map(partial(point, reading=reading), rows, chunksize=8)
        return [p for p in found if p is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    parser.add_argument("--every", type=int, default=1, help="simulate every n-th point")
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores")
    args = parser.parse_args()
    rows = sample(args.truth / "serving" / "aic_silicon_sample.csv")
    chosen = rows[:: args.every]
    points = simulate_all(chosen, num_workers=args.workers)
    print(f"{len(points)} of {len(chosen)} points of cards and engines with a profile")
    print(silicon_table(points, lambda p: (kind(p),), "kind"))
    read = {"as taken": [p for p in points if not p.moe]}
    if args.every == 1:
        dense = [p.row for p in read["as taken"]]
        read |= {
            name: simulate_all(dense, one, args.workers) for name, one in READINGS.items() if one != TAKEN
        }
    table = readings_table(read)
    print(table)
    write(points, table, len(chosen), args.every)


LEFT_OUT = """DeepSeek-R1 on H200 under TensorRT-LLM measured on 2026-01-14, which is
multi-token prediction: InferenceX's changelog adds dsr1-fp8-h200-trt-mtp (pull request 392), and a token takes 1.2 to
1.9 times less than on the same server a month before and two weeks later, a first token no less."""


def by_evidence(p: Point) -> tuple[str, ...]:
    """Which of the sample's weak spots a point has."""
    if p.row["backend"] == "sglang" and p.row["system"] == "b200_sxm":
        return kind(p), "SGLang on B200"
    return kind(p), "weights stated" if states_weights(p.row) else "weights not stated"


def by_source(p: Point) -> tuple[str, ...]:
    return kind(p), p.source, p.row["backend"], p.row["system"], f"{p.row['isl']} / {p.row['osl']}"


def by_model(p: Point) -> tuple[str, ...]:
    return (
        kind(p),
        p.row["model_path"],
        p.row["system"],
        p.row["backend"],
        p.row["gemm_quant_mode"] or "not stated",
    )


def medians(points: list[Point]) -> str:
    return " | ".join(
        f"{np.median(np.abs([getattr(p, f'{name}_error') for p in points])):.1%}" for name in FIGURES
    )


def readings_table(found: dict[str, list[Point]]) -> str:
    """Medians of the dense points, read in several ways."""
    lines = ["| read as | dense points | TPOT median | TTFT median |", "|---|---|---|---|"]
    lines += [f"| {name} | {len(points)} | {medians(points)} |" for name, points in found.items()]
    for name, stated in (("weights stated", True), ("weights not stated", False)):
        some = [p for p in found["as taken"] if states_weights(p.row) == stated]
        lines.append(f"| as taken, {name} | {len(some)} | {medians(some)} |")
    return "\n".join(lines)


def worst(points: list[Point]) -> str:
    tables = []
    for name in ("dense", "MoE"):
        for figure in FIGURES:
            some = [p for p in points if kind(p) == name]
            tables.append(f"The {WORST} worst by {figure.upper()}, {name}:\n\n{worst_table(some, figure)}")
    return "\n\n".join(tables)


def write(points: list[Point], readings: str, num_rows: int, every: int) -> None:
    """Replace what stands from the marker on."""
    text = f"""## Step time

### Profiles: error on points the fit had not seen

Of fitted profiles context ranges and models are left out in turn; of measured surfaces shapes, token counts or points,
one kernel at a time. Kernels err more than whole steps do, for errors of a step's many kernels cancel in part:
whole-model
sums, attention and experts by card are in [kernels](kernels.md).

{profile_table()}

### Measured serving points (aiconfigurator's silicon sample)

{"" if every == 1 else f"One row in {every} of the sample. "}{len(points):,} of {num_rows:,} aggregated
points of H100, H200, B200, B300 with vLLM, TensorRT-LLM or SGLang; the others lack a bundled model or a profile of
that engine, or have states under SGLang, which are not simulated. No time
was fitted to them. Clients and servers are those that the sources published (`benchmarks/silicon.py` names them):
InferenceMAX's points, 10 requests per client, all clients at once, lengths of 0.8 to 1.0 of the stated ones;
aiconfigurator's own, genai-perf with constant lengths. Whether a point is a mean or a median is not stated; means are
compared, which agree far better (the first burst is in them). GPUs of InferenceMAX's rows that count TP x EP twice are
read as its scripts start them. KV pools are the planner's.

Clients see the API server too, as vLLM 0.32's was measured (`catalog/api_servers.yaml`), the same for every point.
Prompts beyond the largest CUDA graph pay 0.5 ms of launches a layer, which the profiles assume: these
points showed that they were missing, published runs say how long they are (docs/step-time.md). Three things that the
sample leaves open were settled after seeing points. What each choice is worth stands below.
* max_num_tokens of aiconfigurator's points of TensorRT-LLM 1.0.0rc3, which predate its generator of flags. Taken is
  what it reports for a point, a prompt beside C - 1 decodes. Then one prompt enters a step, and Llama's, which its
  tokenizer makes one token longer, leave one of C clients waiting until another ends: TTFT grows with the answer, by
  TPOT / (C - 1) a token, as in those points (8 clients, one GPU: 191, 318, 550 ms for 128, 256, 512 tokens).
* Weights of the points whose rows say nothing (Llama-3.1-8B; Qwen3-32B under SGLang): the checkpoint's bfloat16, KV
  too.
* Scales of Llama-3.1-70B's fp8 products: static, as nvidia/Llama-3.1-70B-Instruct-FP8 has them; the rows only say fp8.

{readings}

{silicon_table(points, lambda p: (kind(p),), "kind")}

Of which, points of SGLang on B200 and points that do not state their weights apart:

{silicon_table(points, by_evidence, "kind, which")}

Left out of the sample beforehand: {LEFT_OUT}

{silicon_table(points, by_source, "kind, taken by, engine, card, prompt / answer tokens")}

{silicon_table(points, by_model, "kind, model, card, engine, weights")}

Before kernels were kept as measured, the points of this sample that no choice was made on were off by 13.8 % (dense)
and 12.8 % (MoE) in TPOT, by 24 and 40 % in TTFT (medians); they are kept aside and not in these tables.

What stays off, and why
* Prompts of fp8 and fp4 models on B200, H200 come 10 to 20 % early. Tables are timed in short bursts, a server's
  prompts
  run at the power limit (a guess); what an engine adds around kernels, per sequence and prompt chunk, is not here yet.
* Llama-3.1-8B's steps on H100 are quicker here, by 0.3 to 0.9 ms at eight clients on any number of GPUs: whether its
  servers overlapped the host's work with the card's is not stated.
* At 64 clients on four and eight GPUs, and at 128 on two to eight, Llama-3.1-8B's first tokens come up to ten times
  later there than here, erratically, where 3,000 to 9,000 tokens a second leave one server. What held them is not
  stated.
* InferenceMAX's SGLang servers look for new requests every tenth or thirtieth step and stream as rarely, which is not
  simulated: their first tokens (DeepSeek on B200) come several times later than here.
* Qwen3-32B on one H100 under SGLang waits for KV four to eight times longer there: its pool was smaller than planned.
* TensorRT-LLM balances attention ranks; the ranks here do not wait for each other's prompts.
* Engines changed by more than the errors here while the points were taken, and kernel tables are of one version each
  (vLLM 0.24, TensorRT-LLM 1.3.0rc20): MiniMax-M2.5 on B200 took 20 to 30 % longer under vLLM 0.17 and a nightly build
  than under 0.19 on the same cards, DeepSeek in fp8 on eight B200 40 % longer under TensorRT-LLM 1.1 than 1.2, gpt-oss
  on H200 a third longer in November 2025 than in December. vLLM's own terms by version (0.15 and newer have none but
  the ranks' waiting) do not tell them apart, and a term per layer and engine does not either: TensorRT-LLM's H100
  points are 6 % early with Llama-3.1-8B, 2 % with Qwen3-32B, 4 % late with Llama-3.1-70B on H200.
* Repeated settings differ by 5 to 10 % in TPOT between servers of one version (MiniMax-M2.5, 16 to 128 clients).
* Points of 4000 / 1000 tokens state no concurrency; the batch size is taken for it.
* A few 4-bit mixtures wait for KV in the simulation and did not in reality (DeepSeek nvfp4 on four B200, Kimi and
  MiniMax at high concurrency): the pool was planned too small. Their TTFT is off by minutes and carries the MoE bias.
* Experts are loaded evenly here; real routing is not even, and an expert-parallel step waits for its fullest rank.

{worst(points)}

Made by `benchmarks/validate_step_time.py`."""
    begin, end = "<!-- step-time:begin -->", "<!-- step-time:end -->"
    head = PAGE.read_text().partition(begin)[0]
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}\n")


if __name__ == "__main__":
    main()
