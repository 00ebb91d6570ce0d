"""Measured surfaces against points of the kernel tables that they had not seen, and runs whose link is stated.

    python benchmarks/validate_kernels.py ../shared/truth

Writes docs/validation/kernels.md. Needs the package aiconfigurator-core; no time here was fitted to a run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.llmservingsim import LINK, RUNS, measured, simulated
from kvplan.calibrate.fit.surfaces import INS, OUTS, TOKENS
from kvplan.calibrate.sources import aiconfigurator as tables
from kvplan.ground.files import profiles_dir
from kvplan.models.load import load_model
from kvplan.profiles.profile import Profile, bundled_profiles
from kvplan.profiles.step_times import ELEMENT_BYTES
from kvplan.timing.costs import Array
from kvplan.timing.surfaces import Sheet, product_sheet_s
from kvplan.timing.work import step_work

PAGE = Path(__file__).resolve().parents[1] / "docs" / "validation" / "kernels.md"
MODELS = (
    "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-405B", "meta-llama/Llama-2-13b-hf",
    "Qwen/Qwen3-4B", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-72B-Instruct",
    "google/gemma-2-9b-it", "google/gemma-3-27b-it", "mistralai/Mistral-Small-24B-Instruct-2501", "microsoft/phi-4",
    "mistralai/Mixtral-8x7B-v0.1", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "deepseek-ai/DeepSeek-V3.1",
    "openai/gpt-oss-120b", "zai-org/GLM-4.5-Air", "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
)  # fmt: skip
MOST_TOKENS = 16384


class Cube(NamedTuple):
    """One format's products of one table: every (tokens, out, in) that was timed."""

    sheet: Sheet
    m: Array
    n: Array
    k: Array
    seconds: Array

    @property
    def ratio(self) -> Array:
        """ln(measured / sheet)."""
        mesh = np.meshgrid(self.m, self.n, self.k, indexing="ij")
        ratio: Array = np.log(self.seconds / product_sheet_s(self.sheet, *mesh))
        return ratio


def cube(profile: Profile, family: str) -> Cube | None:
    """The table behind a profile's products; None where they came from elsewhere."""
    assert profile.timing is not None
    engine, _, version = profile.timing.kernels[family].version.partition(" ")
    system = next(s for s, name in tables.SYSTEMS.items() if name == profile.gpu)
    fmt = family.split(".")[1]
    table = tables._read(tables.systems_dir() / system / "gemm" / engine / version / "gemm_perf.parquet")
    dtypes = [
        d for d, ours in tables.FORMATS.items() if ours == fmt and d in set(table["gemm_dtype"].tolist())
    ]
    if not dtypes:
        return None
    chosen = (table["gemm_dtype"] == dtypes[0]) & (table["n"] >= OUTS) & (table["k"] >= INS)
    part = {name: values[chosen] for name, values in table.items()}
    axes = [np.unique(part[c]).astype(float) for c in "mnk"]
    seconds = np.full([len(axis) for axis in axes], np.inf)
    np.minimum.at(
        seconds, tuple(np.searchsorted(a, part[c]) for a, c in zip(axes, "mnk", strict=True)), part["time_s"]
    )
    surface: Any = profile.timing.surfaces[family]
    sheet = surface.sheet._replace(element_bytes=ELEMENT_BYTES[fmt])
    bare = product_sheet_s(sheet, *np.meshgrid(*axes, indexing="ij")) - sheet.seconds(0.0, 0.0)
    seconds = np.where(np.isfinite(seconds) & (1.05 * seconds >= bare), seconds, np.nan)
    return Cube(sheet, *axes, seconds)


def columns(found: Cube, name: str, tp: int) -> dict[tuple[int, int], int]:
    """A model's products as the table's nearest (out, in), each with its number."""
    counts: dict[tuple[int, int], int] = {}
    for p in step_work(load_model(name), tensor_parallel_size=tp).products:
        j = int(np.abs(np.log(found.n / p.out_features)).argmin())
        i = int(np.abs(np.log(found.k / p.in_features)).argmin())
        if not np.isnan(found.seconds[:, j, i]).all():
            counts[j, i] = counts.get((j, i), 0) + p.num
    return counts


def beside(ratio: Array, axis: Array, at: int, left_out: set[int]) -> Array | None:
    """A column from its nearest neighbours along one axis, those that are left out skipped."""
    known = [i for i in range(len(axis)) if i != at and i not in left_out and not np.isnan(ratio[:, i]).all()]
    low, high = [i for i in known if i < at][-1:], [i for i in known if i > at][:1]
    if not low or not high:
        return None
    place = np.log(axis[at] / axis[low[0]]) / np.log(axis[high[0]] / axis[low[0]])
    between: Array = (1 - place) * ratio[:, low[0]] + place * ratio[:, high[0]]
    return between


def model_errors(found: Cube) -> dict[str, list[tuple[float, str, int, int]]]:
    """Errors of whole-model sums, |sum of predictions / sum of measurements - 1|, by what was left out."""
    ratio, errors = found.ratio, {"shapes": [], "tokens": []}  # type: ignore[var-annotated]
    kept = np.isin(found.m, TOKENS)
    for name in MODELS:
        for tp in (1, 2, 4, 8):
            counts = columns(found, name, tp)
            sums = {what: np.zeros(len(found.m)) for what in ("measured", "shapes", "tokens")}
            for (j, i), num in counts.items():
                outs = beside(ratio[:, :, i], found.n, j, {a for a, b in counts if b == i})
                ins = beside(ratio[:, j, :], found.k, i, {b for a, b in counts if a == j})
                near = [x for x in (outs, ins) if x is not None]
                sheet_s = product_sheet_s(found.sheet, found.m, found.n[j], found.k[i])
                column = np.exp(np.mean(near, axis=0)) * sheet_s if near else np.full(len(found.m), np.nan)
                sums["measured"] += num * found.seconds[:, j, i]
                sums["shapes"] += num * np.interp(found.m, found.m[kept], column[kept])
                own = found.seconds[kept, j, i]
                known = ~np.isnan(own)
                sums["tokens"] += num * np.interp(found.m, found.m[kept][known], own[known])
            for what, chosen in (("shapes", found.m > 0), ("tokens", ~kept)):
                error = sums[what] / sums["measured"] - 1
                for at in np.flatnonzero(chosen & (found.m <= MOST_TOKENS) & ~np.isnan(error)):
                    errors[what].append((float(error[at]), name, tp, int(found.m[at])))
    return errors


def sums_table() -> str:
    lines = [
        "| profile | format | left out | sums | median | p90 | p99 | worst | which |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for profile in bundled_profiles():
        families = [f for f in (profile.timing.kernels if profile.timing else {}) if f.startswith("gemm.")]
        for family in families:
            found = None if family.endswith("static") else cube(profile, family)
            if found is None:
                continue
            for what, errors in model_errors(found).items():
                if not errors:
                    continue
                size = np.abs([error for error, *_ in errors])
                worst, name, tp, tokens = max(errors, key=lambda e: abs(e[0]))
                quantiles = " | ".join(f"{np.quantile(size, q):.1%}" for q in (0.5, 0.9, 0.99))
                lines.append(
                    f"| {profile.name} | {family[5:]} | {what} | {len(errors):,} | {quantiles} | {worst:+.0%} | "
                    f"{name.split('/')[1]} TP{tp}, {tokens:,} tokens |"
                )
    return "\n".join(lines)


def kernels_table() -> str:
    """Attention and experts: left-out errors that the profiles carry."""
    lines = [
        "| profile | kernels | left out | points | median | p90 | bias |",
        "|---|---|---|---|---|---|---|",
    ]
    for profile in bundled_profiles():
        for e in profile.timing.errors if profile.timing and profile.timing.kernels else ():
            if e.family in profile.timing.kernels and not e.family.startswith("gemm") and e.p90 is not None:
                lines.append(
                    f"| {profile.name} | {e.family} | {e.held_out} | {e.num_points:,} | {e.median:.1%} | "
                    f"{e.p90:.1%} | {e.bias:+.1%} |"
                )
    return "\n".join(lines)


def suspects_table() -> str:
    """Kernels that were refused in part, replaced, or stay far below the data sheet."""
    lines = [
        "| profile | kernels | version | refused points | of the data sheet | what was found |",
        "|---|---|---|---|---|---|",
    ]
    for profile in bundled_profiles():
        for name, k in (profile.timing.kernels if profile.timing else {}).items():
            if k.why or k.refused:
                lines.append(
                    f"| {profile.name} | {name} | {k.version} | {k.refused:,} | {k.share:.2f} | {k.why} |"
                )
    notes = [
        f"* {p.name}: {p.source.partition('; ')[2]}"
        for p in bundled_profiles()
        if p.timing and p.timing.kernels
    ]
    return "\n".join([*lines, "", *(note for note in notes if not note.endswith(": "))])


def runs_table(truth: Path) -> str:
    lines = ["| run | prefixes | TTFT | TPOT | E2E |", "|---|---|---|---|---|"]
    folder = truth / "serving" / "llmservingsim"
    for run in RUNS:
        real = measured(run, folder)
        for prefixes in (True, False):
            ours = simulated(run, folder, prefixes)
            each = " | ".join(f"{a.mean() / b.mean() - 1:+.1%}" for a, b in zip(ours, real, strict=True))
            lines.append(f"| {run.name} | {'replayed' if prefixes else 'none'} | {each} |")
    return "\n".join(lines)


def sizes() -> str:
    files = sorted(profiles_dir().glob("*"))
    surfaces = sum(p.stat().st_size for p in files if p.suffix == ".xz")
    return f"{sum(p.stat().st_size for p in files):,} bytes in all, {surfaces:,} of them measured surfaces"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("truth", type=Path)
    args = parser.parse_args()
    text = f"""# Kernels and links as measured

Made by `benchmarks/validate_kernels.py`. {len(bundled_profiles())} profiles take {sizes()}.

## Whole-model sums against points left out

All products of {len(MODELS)} bundled models at TP 1, 2, 4 and 8, each taken as the table's nearest (out, in), summed at
every number of tokens that the table timed, up to {MOST_TOKENS:,}. `shapes`: every (out, in) of the model is left out
at once, at all token counts, and told from the shapes beside it; this is harder than a real model, whose shapes lie
between the table's and not on a hole of it. `tokens`: the token counts that a surface does not keep.

{sums_table()}

## Attention and experts

What the profiles carry of points left out in turn, while they were made. Decode attention: one head shape left out
whole, and one (shape, batch, context) left out; contexts to 64k. Experts: token counts from 192 on; the counts between
2 and 96 are not kept, for one draw of a router zigzags there, and are told from the share of experts hit.

{kernels_table()}

## What was not believed

{suspects_table()}

## Real runs with a stated link

LLMServingSim's runs of vLLM 0.19. Between the two cards {LINK["gb_s"]} GB/s and {LINK["latency_us"]} us a hop, as the
runs' own configuration says. Nothing was fitted to the runs.

All four wait in queues, which amplify what a step is off by: a TPOT 0.5 % short is a TTFT 2.6 % short. Of the mixture
on two data-parallel ranks a tenth of a step is the exchange of tokens between the cards, whose speed is an assumption
of the peer's own simulator. Eager steps see the experts' tokens of both ranks as they are; with as many from each rank
as from the fullest, as in CUDA graphs, its TPOT is 3 % and its TTFT 35 % late.

{runs_table(args.truth)}
"""
    PAGE.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
