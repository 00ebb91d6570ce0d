"""Step time against measured serving points and published runs; writes a section of docs/validation.md.

    python benchmarks/validate_step_time.py ../shared/truth [--every 1]

Each row of `serving/aic_silicon_sample.csv` whose card and engine have a profile and whose model is bundled is
simulated: a closed loop of `concurrency` clients, 4 requests each, lengths uniform in 0.8 to 1.0 of the row's. The
sample does not say how requests were spread over time, so TTFT carries that guess; TPOT hardly does.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvplan.engine.config import EngineConfig
from kvplan.engine_args import EngineArgs
from kvplan.errors import KvplanError
from kvplan.gpu import get_gpu
from kvplan.model import AttentionKind, ModelSpec, load_model
from kvplan.profile import bundled_profiles, pick
from kvplan.scenario import parse_scenario
from kvplan.simulate import simulate
from kvplan.simulation.deploy import Setup
from kvplan.steps.step_time import ELEMENT_BYTES, find_formats
from kvplan.steps.work import step_work
from kvplan.timing import ModelStepTime

PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation.md"
GPUS = {"h100_sxm": "h100-sxm", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300"}
ENGINES = {"trtllm": "tensorrt-llm", "vllm": "vllm"}
FORMATS = {"fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4_wo": "int4", "bfloat16": "bf16",
           "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4"}  # fmt: skip
SAME_SHAPES = {"Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B"}
WORST = 8


class Point(NamedTuple):
    """One measured point beside its simulation; times in milliseconds."""

    row: dict[str, str]
    moe: bool
    tpot: float
    ttft: float

    @property
    def tpot_error(self) -> float:
        return self.tpot / float(self.row["silicon_tpot_ms"]) - 1

    @property
    def ttft_error(self) -> float:
        return self.ttft / float(self.row["silicon_ttft_ms"]) - 1


def sample(path: Path) -> list[dict[str, str]]:
    """Aggregated serving rows of cards and engines with a profile."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        r
        for r in rows
        if r["mode"] == "agg"
        and r["system"] in GPUS
        and r["backend"] in ENGINES
        and r["gemm_quant_mode"] in FORMATS
    ]


def known_model(name: str) -> ModelSpec | None:
    try:
        return load_model(SAME_SHAPES.get(name, name))
    except KvplanError:
        return None


def number(text: str, otherwise: float = 1.0) -> float:
    return float(text) if text else otherwise


def point(row: dict[str, str]) -> Point | None:
    """Simulate one row; None where no profile or model is there."""
    model = known_model(row["model_path"])
    profile, _ = pick(GPUS[row["system"]], ENGINES[row["backend"]])
    if model is None or profile is None or profile.timing is None:
        return None
    ranks = int(number(row["attention_dp_size"]))
    clients = max(1, round(number(row["concurrency"], number(row["batch_size"]) * ranks) / ranks))
    time = step_time(row, model, profile.timing, ranks)
    isl, osl = int(row["isl"]), int(row["osl"])
    config = EngineConfig(
        block_size=32, num_gpu_blocks=(clients + 2) * ((isl + osl) // 32 + 3) + 10, max_num_seqs=clients,
        max_num_batched_tokens=8192, max_model_len=isl + osl + 32, enable_prefix_caching=False, async_scheduling=True,
    )  # fmt: skip
    workload = {
        "num_requests": 4 * clients, "arrivals": {"kind": "closed_loop", "concurrency": clients},
        "prompt": {"kind": "uniform", "low": int(0.8 * isl), "high": isl},
        "answer": {"kind": "uniform", "low": int(0.8 * osl), "high": osl},
    }  # fmt: skip
    stand_in = parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": workload})
    with np.errstate(divide="ignore", invalid="ignore"):
        found = simulate(stand_in, setups={"": Setup(config, time, 1e5, 1)}).latencies
    return Point(row, model.is_moe, float(np.nanmean(found.tpot)), float(np.nanmean(found.ttft)))


def variant(stated: str, own: str) -> str:
    """The checkpoint's format where the row states the same number of bits, else the row's."""
    eight, four = ("fp8", "fp8_block"), ("nvfp4", "mxfp4")
    return own if any(stated in bits and own in bits for bits in (eight, four)) else stated


def step_time(row: dict[str, str], model: ModelSpec, timing: Any, ranks: int) -> ModelStepTime:
    """Formats as the row states them, in the checkpoint's own variant (fp8 in blocks, mxfp4) where it has one.

    4-bit formats are the experts': such checkpoints keep attention in 16 bits.
    """
    own = find_formats(model, EngineArgs())
    weight = variant(FORMATS[row["gemm_quant_mode"]], own["weight_format"])
    expert = variant(FORMATS.get(row["moe_quant_mode"], weight), own["expert_format"])
    if model.is_moe and weight in ("int4", "nvfp4", "mxfp4"):
        weight = "bf16"
    kv = "fp8" if row["backend"] == "trtllm" else "bf16"
    work = step_work(
        model, tensor_parallel_size=int(number(row["tp_size"])), pipeline_parallel_size=int(number(row["pp_size"])),
        data_parallel_size=ranks if model.is_moe else 1, enable_expert_parallel=number(row["moe_ep_size"]) > 1,
        weight_bytes=ELEMENT_BYTES[weight], expert_weight_bytes=ELEMENT_BYTES[expert], kv_bytes=ELEMENT_BYTES[kv],
    )  # fmt: skip
    mla = any(layer.attention.kind is AttentionKind.MLA for layer in model.layers)
    link = get_gpu(GPUS[row["system"]]).interconnect_bandwidth
    found: ModelStepTime = timing.step_time(
        work, weight_format=weight, expert_format=expert, kv_format=kv, mla=mla, link_bytes_per_s=link
    )
    return found


def spread(errors: list[float]) -> str:
    size = np.abs(errors)
    return f"{np.median(size):.1%} | {np.quantile(size, 0.9):.1%} | {np.mean(errors):+.1%}"


def silicon_table(points: list[Point]) -> str:
    groups: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for p in points:
        kind = "MoE" if p.moe else "dense"
        groups[(f"all {kind}", "", "", "")].append(p)
        groups[(p.row["model_path"], p.row["system"], p.row["backend"], p.row["gemm_quant_mode"])].append(p)
    lines = [
        "| model | card | engine | weights | points | TPOT median | p90 | bias | TTFT median | p90 | bias |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key in sorted(groups, key=lambda k: (not k[0].startswith("all"), k)):
        found = groups[key]
        tpot, ttft = spread([p.tpot_error for p in found]), spread([p.ttft_error for p in found])
        lines.append(f"| {' | '.join(key)} | {len(found)} | {tpot} | {ttft} |")
    return "\n".join(lines)


def worst_table(points: list[Point]) -> str:
    lines = ["| point | measured TPOT ms | simulated | error |", "|---|---|---|---|"]
    for p in sorted(points, key=lambda p: -abs(np.log(1 + p.tpot_error)))[:WORST]:
        measured = float(p.row["silicon_tpot_ms"])
        lines.append(f"| {p.row['id']} | {measured:.2f} | {p.tpot:.2f} | {p.tpot_error:+.0%} |")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    parser.add_argument("--every", type=int, default=1, help="simulate every n-th point")
    args = parser.parse_args()
    rows = sample(args.truth / "serving" / "aic_silicon_sample.csv")
    points = [p for p in map(point, rows[:: args.every]) if p is not None]
    print(f"{len(points)} of {len(rows)} points of cards and engines with a profile")
    print(silicon_table(points))
    if args.every == 1:
        write(points, len(rows))


def write(points: list[Point], num_rows: int) -> None:
    """Replace the section between the markers."""
    text = f"""## Step time

### Profiles: error on points the fit had not seen

Context ranges (for products: token counts; for all-reduce: message sizes) and models are left out in turn. Kernel
profiles (`gemm`, `gqa`, `mla`, `moe`, `reduce`) err more per kernel than whole steps do: errors of a step's many
kernels cancel in part, and the smallest and largest kernels, where fits are worst, weigh little.

{profile_table()}

### Measured serving points (aiconfigurator's silicon sample)

{len(points):,} of {num_rows:,} aggregated points of H100, H200, B200, B300 with vLLM or TensorRT-LLM; the others lack
a bundled model or a profile. Nothing was fitted to them. How requests arrived was not recorded: here they come in a
closed loop with lengths of 0.8 to 1.0 of the stated ones, so TTFT is a guess about queueing more than about step time.
Weights are the stated formats in the checkpoint's own variant (fp8 in blocks, mxfp4); 4-bit checkpoints keep attention
in 16 bits; KV is taken as fp8 under TensorRT-LLM and 16 bits under vLLM.

{silicon_table(points)}

The {WORST} worst by TPOT, dense:

{worst_table([p for p in points if not p.moe])}

and mixtures of experts:

{worst_table([p for p in points if p.moe])}

Made by `benchmarks/validate_step_time.py`."""
    begin, end = "<!-- step-time:begin -->", "<!-- step-time:end -->"
    block = f"{begin}\n{text}\n{end}"
    page = PAGE.read_text()
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    page = pattern.sub(lambda _: block, page) if pattern.search(page) else f"{page.rstrip()}\n\n{block}\n"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
