"""Measured serving points (aiconfigurator's silicon sample) as simulations: who sent what to which server.

The sample states lengths, concurrency and GPUs; how the points were taken is public elsewhere and differs by source:

* InferenceMAX / InferenceX, the rows of 1024 and 8192 tokens: `benchmark_serving.py --random-range-ratio 0.8
  --num-prompts 10 C --max-concurrency C --request-rate inf`, and one server script per model, card and engine
  (README.md and benchmarks/*.sh of SemiAnalysisAI/InferenceX; client: kimbochen/bench_serving, which draws lengths
  uniformly from 0.8 L to L).
  SGLang's servers (DeepSeek on B200) also run with --scheduler-recv-interval and --stream-interval, not simulated.
* aiconfigurator's own, all other rows: genai-perf with constant lengths, `--concurrency C --request-count 10 C`
  (`eval/benchmarks/genai_perf_runner.py`), max_batch_size = C, prompts never split. Its points of TensorRT-LLM 1.0.0rc3
  predate its generator (`backends/trtllm.py`: max_num_tokens = C + isl + 1500); taken here is max_num_tokens =
  isl + C - 1, a prompt beside C - 1 decodes, which it reports for a point (`num_tokens` in `trtllm_backend.py`; its web
  page advises one more: "isl + max_batch_size"). Prompts have isl tokens, as genai-perf's own generator makes them, and
  Llama's tokenizer puts one in front: the last of C clients then waits until another has ended.

Both clients send C requests at once, then the next when one ends; warm-up requests end before that, so they change
nothing. They see the API server too, as it was measured apart from these points (`catalog/api_servers.yaml`), whatever
the engine. Both tools write means and medians and the sample does not say
which it kept; the points look like means (the first burst is in them), so means are compared.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from kvplan.engines.flags import EngineArgs, parse_engine
from kvplan.engines.sglang_defaults import defaults as sglang_defaults
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import cdiv
from kvplan.memory.forward import estimate
from kvplan.models.load import load_model
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.profiles.engine_terms import with_terms
from kvplan.profiles.profile import pick
from kvplan.profiles.step_times import ELEMENT_BYTES, default_link, find_formats
from kvplan.scenario.schema import SGLangFlags, parse_scenario
from kvplan.schedulers.vllm.config import BatchWait, EngineConfig
from kvplan.simulation.deploy import Setup, api_times
from kvplan.simulation.simulator import simulate
from kvplan.timing.step import ModelStepTime, ScaledStepTime
from kvplan.timing.work import step_work

Row = dict[str, str]

GPUS = {"h100_sxm": "h100-sxm", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300"}
ENGINES = {"trtllm": "tensorrt-llm", "vllm": "vllm", "sglang": "sglang"}
UNSTATED = {"2025-10-29": "0.10", "2026-04-03": "0.19"}
"""vLLM of rows that state no release, by date: InferenceMAX's first runs, whose scripts pass --async-scheduling, and a
nightly build beside 0.19."""
FORMATS = {"fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4_wo": "int4", "bfloat16": "bf16",
           "w4a16_mxfp4": "mxfp4", "w4a8_mxfp4_mxfp8": "mxfp4"}  # fmt: skip
SAME_SHAPES = {"Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B"}
BLOCKS = {"trtllm": 32, "vllm": 32, "sglang": 1}
"""Tokens per KV block; vLLM's backends take 16 and more, 32 stands for them all."""
GENERATED_SLACK = 1500
"""Tokens over isl + C that aiconfigurator's later generator writes as max_num_tokens."""
BOS_TOKENS = {"meta-llama/Llama-3.1-8B-Instruct": 1, "meta-llama/Llama-3.1-70B": 1}
"""Tokens that a model's tokenizer puts before a prompt; none elsewhere."""
LLAMA_BATCH_WAIT = BatchWait(timeout_iters=20, max_tokens_ratio=0.9)
INFERENCEMAX_LENGTHS = {(1024, 1024), (1024, 8192), (8192, 1024)}


def number(text: str, otherwise: float = 1.0) -> float:
    return float(text) if text else otherwise


def is_inferencemax(row: Row) -> bool:
    return (int(row["isl"]), int(row["osl"])) in INFERENCEMAX_LENGTHS and "epnone" not in row["id"]


def is_multi_token(row: Row) -> bool:
    """Whether a row is multi-token prediction, which the sample does not state.

    InferenceX's changelog adds dsr1-fp8-h200-trt-mtp (pull request 392) before these rows: 1.2 to 1.9 times as quick a
    token as the same server a month before and two weeks later, first tokens as late.
    """
    return row["system"] == "h200_sxm" and row["backend"] == "trtllm" and row["measured"] == "2026-01-14"


def vllm_version(row: Row) -> str:
    """The version a row states, without its patch, or that of its date."""
    stated = row["backend_version"].split(".")
    return ".".join(stated[:2]) if stated[0].isdigit() else UNSTATED[row["measured"]]


def is_reproduced(row: Row) -> bool:
    """Whether a row is one of aiconfigurator's points taken by hand, before there was a generator of server flags."""
    return row["backend_version"] == "1.0.0rc3" and row["image"].startswith("silicon_concurrency")


class Reading(NamedTuple):
    """What the sample leaves open, and how it is read."""

    slack: int = -1
    """max_num_tokens - isl - clients of aiconfigurator's points taken by hand."""
    frontend: Any = {}  # noqa: RUF012
    """What API servers take where it is not what was measured."""
    static_scales: bool = True
    """Whether Llama-3.1-70B's fp8 products have static scales, as nvidia/Llama-3.1-70B-Instruct-FP8 has them."""
    launch_ms: float | None = None
    """Launches of a layer outside CUDA graphs, instead of the profile's."""
    ends: tuple[float, float] = (1.0, 1.0)
    """How many times as long steps take, and what prompts add to them."""


TAKEN = Reading()
READINGS = {
    "as taken": TAKEN,
    "max_num_tokens = isl + C, as aiconfigurator's web page advises": Reading(slack=0),
    "max_num_tokens = isl + C + 1500, as its later generator writes": Reading(slack=GENERATED_SLACK),
    "no API server": Reading(frontend="none"),
    "10 ms more a request in the API server": Reading(frontend={"latency_ms": 15.0}),
    "no launches outside CUDA graphs": Reading(launch_ms=0.0),
    "0.26 ms of launches a layer outside CUDA graphs": Reading(launch_ms=0.26),
    "0.79 ms of launches a layer outside CUDA graphs": Reading(launch_ms=0.79),
    "Llama-3.1-70B's fp8 with scales computed on the fly": Reading(static_scales=False),
}
"""What each choice is worth: the same points read otherwise."""


class Parallel(NamedTuple):
    """How a server's GPUs share the work."""

    tensor: int
    """Ranks that share attention."""
    data: int
    """Ranks with requests of their own."""
    experts: bool
    """Whether experts are spread over ranks rather than cut."""


def parallel(row: Row) -> Parallel:
    """The GPUs of a row. InferenceMAX passes TP and EP of the *same* GPUs (`--tp_size=$TP --ep_size=$EP_SIZE`).

    Rows converted as if they multiplied (tp 64 = 8 x 8, or 4 x 4 data ranks of 16) repeat measurements that other
    rows state as 8 or 4 GPUs; they are read as those.
    """
    tp, dp = int(number(row["tp_size"])), int(number(row["attention_dp_size"]))
    moe_tp, ep = int(number(row["moe_tp_size"])), int(number(row["moe_ep_size"]))
    if is_inferencemax(row):
        if moe_tp == ep > 1 and tp * dp == moe_tp * ep:  # GPUs counted twice
            return Parallel(1, ep, True) if dp > 1 else Parallel(ep, 1, True)
        if tp == dp > 1 and ep == tp * dp:  # vllm serve --tensor-parallel-size TP --enable-expert-parallel
            return Parallel(tp, 1, True)
    return Parallel(tp, dp, ep > 1)


class Server(NamedTuple):
    """Flags that decide when a prompt enters."""

    max_num_tokens: int
    max_num_seqs: int
    chunked: bool
    utilization: float | None
    kv_dtype: str
    batch_wait: BatchWait | None = None
    sglang: SGLangFlags | None = None


def server(row: Row, clients: int, ranks: int, slack: int = TAKEN.slack) -> Server:
    """Flags of the source's own scripts; ModelOpt's 4-bit checkpoints state fp8 KV, TensorRT-LLM's scripts set it.

    Where a row does not state its weights, KV is taken as the checkpoint has it, as they are.
    """
    isl, osl = int(row["isl"]), int(row["osl"])
    name = row["model_path"]
    stated = row["backend"] != "vllm" or "Llama-3.1-70B" in name or row["gemm_quant_mode"] == "nvfp4"
    own = not states_weights(row) or (row["system"] == "h200_sxm" and "gpt-oss" in name)
    kv = "fp8" if stated and not own else "auto"
    if row["backend"] == "vllm":
        return Server(
            8192, clients, True, 0.95 if "MiniMax" in name and row["system"] == "b200_sxm" else 0.9, kv
        )
    if row["backend"] == "sglang":
        return sglang_server(row, clients, kv)
    if not is_inferencemax(row):
        slack = slack if is_reproduced(row) else GENERATED_SLACK
        return Server(isl + clients + slack, clients, False, 0.9, kv)
    if "gpt-oss" in name:
        return Server(20000, clients, False, 0.85, kv)
    if "Llama" in name:
        waits = isl == osl == 1024 and number(row["tp_size"]) < 8  # as its script has it
        return Server(16384, clients, False, 0.9, kv, LLAMA_BATCH_WAIT if waits else None)
    tokens = -(-(clients * ranks + isl + 64) // 64) * 64
    share = 0.75 if row["system"] == "h200_sxm" else 0.8
    return Server(tokens if row["system"] == "h200_sxm" else max(8192, tokens), clients, False, share, kv)


def sglang_server(row: Row, clients: int, kv: str) -> Server:
    """SGLang's defaults in aiconfigurator's points; InferenceMAX's scripts, without their --scheduler-recv-interval."""
    if not is_inferencemax(row):
        return Server(sglang_defaults(get_gpu(GPUS[row["system"]]).reported_mib).chunked_prefill_size, clients, True,
                      None, kv, sglang=SGLangFlags())  # fmt: skip
    if row["gemm_quant_mode"] == "nvfp4":
        return Server(16384, 256, True, 0.85, kv, sglang=SGLangFlags())
    few = parallel(row).tensor == 4
    tokens, seqs, share = (8192, 32, 0.95) if few else (32768, 128, 0.82)
    return Server(tokens, seqs, True, share, kv, sglang=SGLangFlags(max_prefill_tokens=tokens))


def prompt_tokens(row: Row) -> int:
    """Most tokens of a prompt, what the tokenizer puts before it included."""
    return int(row["isl"]) + BOS_TOKENS.get(row["model_path"], 0)


def known_model(name: str) -> ModelSpec | None:
    try:
        return load_model(SAME_SHAPES.get(name, name))
    except KvplanError:
        return None


def is_simulated(row: Row, model: ModelSpec) -> bool:
    """SGLang's pools of windows and states are planned, not simulated."""
    kinds = {layer.attention.kind for layer in model.layers}
    return row["backend"] != "sglang" or kinds <= {AttentionKind.FULL, AttentionKind.MLA}


def variant(stated: str, own: str) -> str:
    """The checkpoint's format where the row states the same number of bits, else the row's."""
    eight, four = ("fp8", "fp8_block"), ("nvfp4", "mxfp4")
    return own if any(stated in bits and own in bits for bits in (eight, four)) else stated


def states_weights(row: Row) -> bool:
    """Whether a row says in which format its server held the weights; else the checkpoint's own is taken."""
    return bool(row["gemm_quant_mode"])


def formats(row: Row, model: ModelSpec, static_scales: bool = TAKEN.static_scales) -> tuple[str, str]:
    """Weights and experts as the row states them, in the checkpoint's own variant (fp8 in blocks, mxfp4).

    4-bit formats of mixtures are the experts': such checkpoints keep attention in 16 bits. InferenceMAX's dense
    fp8 is nvidia/Llama-3.1-70B-Instruct-FP8, whose activations have static scales; aiconfigurator's mode fp8 has not.
    """
    own = find_formats(model, EngineArgs())
    if not states_weights(row):
        return own["weight_format"], own["expert_format"]
    weight = variant(FORMATS[row["gemm_quant_mode"]], own["weight_format"])
    if weight == "fp8" and not model.is_moe and is_inferencemax(row) and static_scales:
        weight = "fp8_static"
    expert = variant(FORMATS.get(row["moe_quant_mode"], weight), own["expert_format"])
    return ("bf16" if model.is_moe and weight in ("int4", "nvfp4", "mxfp4") else weight), expert


def step_time(
    row: Row, model: ModelSpec, timing: Any, where: Parallel, kv: str, stated: tuple[str, str]
) -> ModelStepTime:
    weight, expert = stated
    work = step_work(
        model, tensor_parallel_size=where.tensor, pipeline_parallel_size=int(number(row["pp_size"])),
        data_parallel_size=where.data if model.is_moe else 1, enable_expert_parallel=where.experts,
        weight_bytes=ELEMENT_BYTES[weight], expert_weight_bytes=ELEMENT_BYTES[expert], kv_bytes=ELEMENT_BYTES[kv],
    )  # fmt: skip
    mla = any(layer.attention.kind is AttentionKind.MLA for layer in model.layers)
    link = default_link(get_gpu(GPUS[row["system"]]))
    args = EngineArgs(tensor_parallel_size=where.tensor, data_parallel_size=where.data)
    engine = parse_engine(
        f"vllm@{vllm_version(row)}" if row["backend"] == "vllm" else ENGINES[row["backend"]]
    )
    timing, _ = with_terms(timing, engine, model, get_gpu(GPUS[row["system"]]), args, work, expert)
    found: ModelStepTime = timing.step_time(
        work, weight_format=weight, expert_format=expert, kv_format=kv, mla=mla, link=link
    )
    return found


QUANTIZATION = {"fp8": "fp8", "fp8_static": "fp8", "nvfp4": "modelopt_fp4"}


def pool_tokens(row: Row, model: ModelSpec, where: Parallel, flags: Server) -> float:
    """Tokens of KV that the planner finds room for on one data rank; infinite where it cannot say."""
    stated = formats(row, model)
    own = find_formats(model, EngineArgs())
    same = stated == (own["weight_format"], own["expert_format"])
    args = EngineArgs(
        tensor_parallel_size=where.tensor, data_parallel_size=where.data, enable_expert_parallel=where.experts,
        max_model_len=int(row["isl"]) + int(row["osl"]) + 200, gpu_memory_utilization=flags.utilization,
        kv_cache_dtype=flags.kv_dtype, quantization=None if same else QUANTIZATION.get(stated[1]),
        max_num_seqs=flags.max_num_seqs,
    )  # fmt: skip
    try:
        layout = estimate(model, GPUS[row["system"]], args, engine=ENGINES[row["backend"]]).layout
    except KvplanError:
        return float("inf")
    return layout.num_blocks * layout.block_size if layout else float("inf")


def engine_config(row: Row, clients: int, flags: Server, pool: float) -> EngineConfig:
    """One data rank's engine. TensorRT-LLM admits what fits to its end (GUARANTEED_NO_EVICT): a cap on sequences."""
    block = BLOCKS[row["backend"]]
    longest = prompt_tokens(row) + int(row["osl"]) + 32
    seqs, blocks = flags.max_num_seqs, cdiv(longest, block)
    no_evict = row["backend"] == "trtllm"
    if no_evict and pool < clients * longest:
        mean = 0.9 * longest if is_inferencemax(row) else longest
        seqs = max(1, min(seqs, int(pool / mean)))
    usable = seqs * blocks if no_evict else min(max(pool / block, blocks + 1), 1.1 * clients * blocks)
    return EngineConfig(
        block_size=block, num_gpu_blocks=int(usable) + 1, max_num_seqs=seqs,
        max_num_batched_tokens=flags.max_num_tokens, max_model_len=longest,
        enable_prefix_caching=flags.sglang is not None and not is_inferencemax(row),
        enable_chunked_prefill=flags.chunked, async_scheduling=True, batch_wait=flags.batch_wait,
        admission="reserve_max" if no_evict else "grow",
    )  # fmt: skip


class Point(NamedTuple):
    """One measured point beside its simulation; times in milliseconds."""

    row: Row
    moe: bool
    tpot: float
    ttft: float

    @property
    def tpot_error(self) -> float:
        return self.tpot / float(self.row["silicon_tpot_ms"]) - 1

    @property
    def ttft_error(self) -> float:
        return self.ttft / float(self.row["silicon_ttft_ms"]) - 1

    @property
    def source(self) -> str:
        return "InferenceMAX" if is_inferencemax(self.row) else "aiconfigurator"


def sample(path: Path) -> list[Row]:
    """Aggregated serving rows of cards and engines with a profile, without multi-token prediction."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        r
        for r in rows
        if r["mode"] == "agg"
        and r["system"] in GPUS
        and r["backend"] in ENGINES
        and (r["gemm_quant_mode"] in FORMATS or not states_weights(r))
        and not is_multi_token(r)
    ]


def point(row: Row, reading: Reading = TAKEN) -> Point | None:
    """Simulate one row; None where no profile or model is there."""
    model = known_model(row["model_path"])
    profile, _ = pick(GPUS[row["system"]], ENGINES[row["backend"]])
    if model is None or not is_simulated(row, model) or profile is None or profile.timing is None:
        return None
    if profile.engine != ENGINES[row["backend"]]:
        return None
    where = parallel(row)
    clients = max(1, round(number(row["concurrency"], number(row["batch_size"]) * where.data) / where.data))
    flags = server(row, clients, where.data, reading.slack)
    kv = "fp8" if flags.kv_dtype == "fp8" else "bf16"
    time = step_time(row, model, profile.timing, where, kv, formats(row, model, reading.static_scales))
    if reading.launch_ms is not None:
        host = replace(time.costs.host, launch_s=reading.launch_ms / 1000)
        time = ModelStepTime(time.work, replace(time.costs, host=host))
    config = engine_config(row, clients, flags, pool_tokens(row, model, where, flags))
    shortest = 0.8 if is_inferencemax(row) else 1.0
    lengths = {
        name: {"kind": "uniform", "low": int(shortest * longest), "high": longest}
        for name, longest in (("prompt", prompt_tokens(row)), ("answer", int(row["osl"])))
    }
    workload = lengths | {
        "num_requests": 10 * clients, "arrivals": {"kind": "closed_loop", "concurrency": clients},
    }  # fmt: skip
    stand_in = parse_scenario(
        {"model": "Qwen/Qwen3-8B", "gpu": "h100", "workload": workload, "frontend": reading.frontend}
    )
    args = EngineArgs(data_parallel_size=where.data)
    steps = time if reading.ends == (1.0, 1.0) else ScaledStepTime(time, *reading.ends)
    setup = Setup(config, steps, 1e5, 1, sglang=flags.sglang, api=api_times(stand_in, args))
    found = simulate(stand_in, setups={"": setup}).latencies
    return Point(row, model.is_moe, float(found.tpot.mean()), float(found.ttft.mean()))
