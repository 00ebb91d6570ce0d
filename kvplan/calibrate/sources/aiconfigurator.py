"""NVIDIA's measured kernel tables (package `aiconfigurator-core`, Apache-2.0) as surfaces.

Tables: matrix products, grouped-query and MLA attention, fused experts, exchanges between GPUs, per GPU, engine and
version. They are kernels, not steps: launches between kernels, norms, the sampler and the host are not in them; those
coefficients are stated as assumptions (`assumed`). No table is believed blindly: points beyond the data sheet are
refused, and a format whose experts stream far below it is compared with other versions of the same kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kvplan.calibrate.fit.surfaces import Made, attention_surface, expert_surface, gemm_surface, link_curve
from kvplan.calibrate.fit.terms import element_wise
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.gpu import GpuSpec
from kvplan.models.spec import AttentionKind, AttentionSpec
from kvplan.profiles.surface_file import Surface
from kvplan.profiles.timing_profile import ELEMENT_BYTES, KernelSource, RegimeError
from kvplan.timing.costs import Array
from kvplan.timing.surfaces import FULL, AttentionSurface, Curve, GemmSurface, Sheet
from kvplan.timing.work import Product, projections

SOURCE = "kernel tables of aiconfigurator-core"
"""What profiles made of them name as their source."""
SYSTEMS = {
    "h100_sxm": "h100-sxm", "h200_sxm": "h200", "b200_sxm": "b200", "b300_sxm": "b300", "gb200": "gb200",
    "gb300": "gb300", "l40s": "l40s", "l4": "l4", "a100_sxm": "a100-80gb", "h100_pcie": "h100-pcie",
    "rtx_pro_6000_server": "rtx-pro-6000",
}  # fmt: skip
"""The package's name of a system -> the GPU table's."""
FORMATS = {
    "bfloat16": "bf16", "float16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block", "fp8_static": "fp8_static",
    "nvfp4": "nvfp4",
    "int4_wo": "int4", "w4a16_mxfp4": "mxfp4",
}  # fmt: skip
MXFP4_IN_FP8 = "w4a8_mxfp4_mxfp8"
"""mxfp4 experts multiplied in fp8: what TensorRT-LLM runs where the card can (Blackwell)."""
ENOUGH_ROWS = 80
"""Rows of a format from which a version counts."""
HOST_BOUND_S = 25e-6
"""A format whose quickest tenth of products takes longer was timed launching, not multiplying: left out."""
LAUNCHED_APART = 1.5
"""An engine's MLA blocks that take so many times TensorRT-LLM's were timed with gaps between their kernels.

Those with gaps take 1.6 to 2.4 times as long on four cards; on the B200, both timed in graphs, 1.1.
"""
WORTH_KEEPING = 1.05
"""How much quicker fp8 products without that search must be to have a surface of their own."""
MOST_OF_A_PRODUCT = 0.3
"""Share of an fp8 product's time that is left at least when the search for its largest activation is taken off."""
LEAST_ATTENTION = 0.15
"""Share of an MLA block's time that is left to attention at least when its products are taken off."""
FAR_BELOW = 0.6
"""Experts that stream at less than this share of the data sheet are compared with other versions of their kernels."""
HOPELESS = 0.3
"""fp8 experts below this share are left out: those scaled in blocks read the same bytes."""
BETTER = 1.25
"""How many times quicker another version must be to be taken instead."""
DISTRIBUTION = "power_law_1.01"
"""How tokens are spread over experts: unevenly; where experts are spread over ranks, the fullest one's time."""

Table = dict[str, Any]


def systems_dir() -> Path:
    """Where the package keeps its tables."""
    spec = find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        raise KvplanError("aiconfigurator-core is not installed: pip install 'kvplan[aiconfigurator]'")
    return Path(next(iter(spec.submodule_search_locations))) / "systems" / "data"


class Tables(NamedTuple):
    """What was made of a card's tables for one engine."""

    surfaces: dict[str, Surface]
    kernels: dict[str, KernelSource]
    errors: tuple[RegimeError, ...]
    version: str
    """Of the engine whose products were timed."""
    notes: tuple[str, ...]
    """What was taken from elsewhere."""
    ranges: dict[str, tuple[float, float]]
    """Measured from, to: batch, context, prompt."""


def kernel_tables(system: str, engine: str, gpu: GpuSpec) -> Tables:
    """Surfaces of one system and engine (vllm, trtllm, sglang), the newest version of each table that holds up."""
    folder = systems_dir() / system
    if not folder.is_dir():
        known = sorted(p.name for p in systems_dir().iterdir() if p.is_dir())
        raise KvplanError(
            f"no tables for {system!r}{did_you_mean(system, known)} (known: {', '.join(known)})"
        )
    name = {"tensorrt-llm": "trtllm"}.get(engine, engine)
    gemm = _newest(folder, "gemm", name, "gemm_perf")
    if gemm is None:
        engines = sorted(p.name for p in (folder / "gemm").iterdir()) if (folder / "gemm").is_dir() else []
        raise KvplanError(f"{system} has no tables of {engine!r}; it has {', '.join(engines) or 'none'}")
    maker = _Maker(folder, name, gpu)
    maker.products(gemm)
    maker.attention()
    maker.mla()
    maker.experts()
    maker.links()
    errors = tuple(error for made in maker.made.values() for error in made.errors)
    surfaces = {family: made.surface for family, made in maker.made.items()} | maker.curves
    return Tables(surfaces, maker.kernels, errors, gemm.parent.name, tuple(maker.notes), _ranges(surfaces))


def _ranges(surfaces: Mapping[str, Surface]) -> dict[str, tuple[float, float]]:
    """Where attention was measured."""
    for surface in surfaces.values():
        if isinstance(surface, AttentionSurface):
            axes = (surface.batches, surface.contexts, surface.lengths)
            names = ("num_decodes", "mean_context", "chunk_tokens")
            return {name: (1.0, float(axis[-1])) for name, axis in zip(names, axes, strict=True)}
    return {}


class _Maker:
    """Tables of one folder and engine on their way to surfaces."""

    def __init__(self, folder: Path, engine: str, gpu: GpuSpec) -> None:
        self.folder, self.engine, self.gpu = folder, engine, gpu
        self.made: dict[str, Made] = {}
        self.curves: dict[str, Surface] = {}
        self.kernels: dict[str, KernelSource] = {}
        self.notes: list[str] = []

    def sheet(self, fmt: str, flops: str = "") -> Sheet:
        """The card's data sheet for a format; `flops`: in which its products run, where that is another."""
        known = {"fp8": "fp8", "nvfp4": "fp4", "mxfp4": "bf16", "int4": "bf16"}.get(fmt.split("_")[0], "bf16")
        return Sheet(self.gpu.bandwidth, self.gpu.flops(flops or known), ELEMENT_BYTES[fmt])

    def keep(self, family: str, made: Made, version: str, why: str = "") -> None:
        """Take a surface, and note where it comes from."""
        self.made[family] = made
        low = f"large points reach {made.share:.2f} of the data sheet" if made.share < FAR_BELOW else ""
        self.kernels[family] = KernelSource(
            version=version, num_points=made.num_points, refused=made.refused, share=round(made.share, 3),
            why="; ".join(x for x in (why, low) if x),
        )  # fmt: skip

    def products(self, path: Path) -> None:
        """Every format of the products' table that was timed multiplying."""
        table, version = _read(path), f"{self.engine} {path.parent.name}"
        for dtype in sorted(set(table["gemm_dtype"].tolist()) & FORMATS.keys()):
            part = _where(table, table["gemm_dtype"] == dtype)
            fmt = FORMATS[dtype]
            if np.quantile(part["time_s"], 0.1) > HOST_BOUND_S:
                self.notes.append(f"gemm.{fmt} of {version} was timed launching, not multiplying: left out")
                continue
            self.keep(f"gemm.{fmt}", gemm_surface(part, self.sheet(fmt), f"gemm.{fmt}"), version)
        scales = _newest(self.folder, "quantize", self.engine, "computescale_perf")
        if scales is not None and "gemm.fp8" in self.made:
            static = _without_search(_where(table, table["gemm_dtype"] == "fp8"), _read(scales))
            why = "gemm.fp8 less the search for the largest activation, timed alone"
            self.keep(
                "gemm.fp8_static", gemm_surface(static, self.sheet("fp8"), "gemm.fp8_static"), version, why
            )
        self._compare_eight_bits()

    def _compare_eight_bits(self) -> None:
        """Say where fp8 products are slower than bf16's, which no card is built for."""
        bf16 = self.made.get("gemm.bf16")
        for family in [f for f in self.made if f.startswith("gemm.fp8")]:
            if bf16 is None:
                continue
            wide = [(n, k) for n in (4096, 8192) for k in (4096, 8192)]
            ratio = [_at(self.made[family].surface, n, k) / _at(bf16.surface, n, k) for n, k in wide]
            if (slower := float(np.median(ratio))) > 1.0:
                source = self.kernels[family]
                why = "; ".join(
                    x for x in (source.why, f"{slower:.2f} x bf16's time at 256 tokens and more") if x
                )
                self.kernels[family] = source.model_copy(update={"why": why})

    def attention(self) -> None:
        """Grouped-query attention of every KV format timed for decodes and prompts."""
        paths = [_newest(self.folder, "attention", self.engine, f"{kind}_attention_perf") for kind in
                 ("generation", "context")]  # fmt: skip
        if None in paths:
            return
        decode, prompt = (_read(path) for path in paths if path is not None)
        for dtype in sorted(set(decode["kv_cache_dtype"].tolist()) & set(prompt["kv_cache_dtype"].tolist())):
            fmt = FORMATS.get(dtype)
            parts = _attention_points(decode, dtype), _attention_points(prompt, dtype)
            if fmt is None or not all(len(part["time_s"]) for part in parts):
                continue
            made = attention_surface(*parts, self.sheet(fmt, "bf16"), f"gqa.{fmt}")
            assert paths[0] is not None
            self.keep(f"gqa.{fmt}", made, f"{self.engine} {paths[0].parent.name}")

    def mla(self) -> None:
        """MLA blocks less their products; TensorRT-LLM's where this engine's were timed launch by launch."""
        engine = _mla_engine(self.folder, self.engine)
        paths = [
            _newest(self.folder, "mla", engine, f"mla_{kind}_module_perf")
            for kind in ("generation", "context")
        ]
        if None in paths or "gemm.bf16" not in self.made:
            return
        decode, prompt = (_read(path) for path in paths if path is not None)
        why = "" if engine == self.engine else "TensorRT-LLM's: this engine's were timed launch by launch"
        if why:
            self.notes.append("MLA blocks are TensorRT-LLM's, this engine's were timed launch by launch")
        for dtype in sorted(set(decode["kv_cache_dtype"].tolist()) & set(prompt["kv_cache_dtype"].tolist())):
            fmt = FORMATS.get(dtype)
            gemm = self.made["gemm.bf16"].surface
            parts = _mla_points(decode, dtype, gemm), _mla_points(prompt, dtype, gemm)
            if fmt is None or not all(len(part["time_s"]) for part in parts):
                continue
            made = attention_surface(
                *parts, self.sheet(fmt, "bf16"), f"mla.{fmt}", pair_flops=2.0 * (192 + 128)
            )
            assert paths[0] is not None
            self.keep(f"mla.{fmt}", made, f"{engine} {paths[0].parent.name}", why)

    def experts(self) -> None:
        """Fused experts of every format, from the newest version unless it streams far below an older or like one."""
        paths = sorted(
            (self.folder / "moe" / self.engine).glob("*/moe_perf.parquet"), key=_version, reverse=True
        )
        wanted = {FORMATS.get(dtype, "mxfp4") for path in paths for dtype in _dtypes(path)}
        for fmt in sorted(wanted):
            parts = [(self._expert_points(path, dtype), f"{self.engine} {path.parent.name}", dtype)
                     for path in paths for dtype in _dtypes(path) if FORMATS.get(dtype, "mxfp4") == fmt]  # fmt: skip
            if fmt == "mxfp4" and not any(dtype == MXFP4_IN_FP8 for _, _, dtype in parts):
                parts += self._like_kernels()
            tried = [self._tried(fmt, *part) for part in parts if _is_enough(part[0])]
            if tried:
                self._choose(fmt, tried)

    def _tried(self, fmt: str, points: Table, version: str, dtype: str) -> _Tried:
        sheet = self.sheet(fmt, "fp8" if dtype == MXFP4_IN_FP8 else "")
        return _Tried(expert_surface(points, sheet, f"moe.{fmt}"), points, version, dtype)

    def _choose(self, fmt: str, tried: list[_Tried]) -> None:
        """The newest, or the quickest if that streams far below it; older ones of its speed lend shapes it lacks."""
        first, best = tried[0], max(tried, key=lambda one: one.made.share)
        why = ""
        if first.made.share < FAR_BELOW and best.made.share > BETTER * first.made.share:
            why = (f"{first.dtype} of {first.version} streams at {first.made.share:.2f} of the data sheet, "
                   f"{best.dtype} of {best.version} at {best.made.share:.2f}")  # fmt: skip
            first = best
        if first.made.share < HOPELESS and fmt == "fp8":
            self.notes.append(
                f"moe.fp8 of {first.version} streams at {first.made.share:.2f} of the data sheet: as in fp8_block"
            )
            return
        alike = [one for one in tried if one is not first and one.dtype == first.dtype
                 and first.made.share / BETTER < one.made.share < BETTER * first.made.share]  # fmt: skip
        points, lent = first.points, []
        for one in alike:
            more = _missing_shapes(points, one.points)
            if len(more["tokens"]):
                points = {name: np.concatenate([points[name], more[name]]) for name in points}
                lent.append(f"other shapes from {one.version}")
        made = self._tried(fmt, points, first.version, first.dtype).made if lent else first.made
        self.keep(f"moe.{fmt}", made, first.version, "; ".join(x for x in (why, *lent) if x))

    def _like_kernels(self) -> list[tuple[Table, str, str]]:
        """mxfp4 experts with fp8 activations where SGLang timed FlashInfer's, which vLLM runs on Blackwell too."""
        path = _newest(self.folder, "moe", "sglang", "moe_perf")
        if self.engine != "vllm" or path is None or MXFP4_IN_FP8 not in _dtypes(path):
            return []
        return [(self._expert_points(path, MXFP4_IN_FP8), f"sglang {path.parent.name}", MXFP4_IN_FP8)]

    def _expert_points(self, path: Path, dtype: str) -> Table:
        table = _read(path)
        chosen = (table["moe_dtype"] == dtype) & (table["distribution"] == DISTRIBUTION)
        part = _where(
            table, chosen & (table["moe_tp_size"] * table["moe_ep_size"] <= 16) & (table["time_s"] > 0)
        )
        return {
            "hidden": part["hidden_size"], "cut": part["inter_size"] / part["moe_tp_size"], "topk": part["topk"],
            "experts": part["num_experts"], "ranks": part["moe_ep_size"], "tokens": part["num_tokens"],
            "time_s": part["time_s"],
        }  # fmt: skip

    def links(self) -> None:
        """All-reduce by number of ranks, the quicker of the engine's own and NCCL's; all-gather of NCCL."""
        own, nccl = (_newest(self.folder, "comm", self.engine, "custom_allreduce_perf"),
                     _newest(self.folder, "comm", "nccl", "nccl_perf"))  # fmt: skip
        found: dict[str, list[tuple[Array, Array]]] = {}
        for path, size in ((own, 2.0), (nccl, 2.0)):
            if path is None:
                continue
            table = _read(path)
            for name, num_bytes, time_s in _exchanges(table, size):
                found.setdefault(name, []).append((num_bytes, time_s))
        for name, parts in sorted(found.items()):
            self.curves[name] = link_curve(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        if found:
            versions = [f"{p.parent.parent.name} {p.parent.name}" for p in (own, nccl) if p is not None]
            count = sum(len(curve.x) for curve in self.curves.values() if isinstance(curve, Curve))
            pcie = (
                ""
                if "NVLink" in self.gpu.interconnect
                else f"measured on a server of {self.gpu.name}, not yours"
            )
            self.kernels["links"] = KernelSource(version=", ".join(versions), num_points=count, why=pcie)


class _Tried(NamedTuple):
    """One version of a format's experts."""

    made: Made
    points: Table
    version: str
    dtype: str


def _is_enough(points: Table) -> bool:
    """Whether a version timed a format's experts from one token to all of them hit, often enough to count."""
    return len(points["tokens"]) >= ENOUGH_ROWS and {1, FULL} <= set(points["tokens"].tolist())


def _missing_shapes(have: Table, more: Table) -> Table:
    """The points of shapes that others lack."""
    names = ("hidden", "cut", "topk", "experts", "ranks")
    known = set(zip(*(have[name].tolist() for name in names), strict=True))
    rows = zip(*(more[name].tolist() for name in names), strict=True)
    return _where(more, np.array([row not in known for row in rows]))


def _exchanges(table: Table, element: float) -> Iterator[tuple[str, Array, Array]]:
    """(name, bytes, seconds) of every exchange in 16 bits and number of ranks; sizes of gathers are of the whole."""
    kinds = table["op_name"] if "nccl_dtype" in table else np.full(len(table["time_s"]), "all_reduce")
    if "nccl_dtype" in table:
        chosen = table["nccl_dtype"] == "half"
    else:
        ways = table["backend" if "backend" in table else "kernel_source"].tolist()
        chosen = np.array([not str(way).endswith("eager") for way in ways])
    for kind in ("all_reduce", "all_gather"):
        for ranks in sorted(set(table["num_gpus"].tolist()) - {1}):
            part = _where(
                table, chosen & (kinds == kind) & (table["num_gpus"] == ranks) & (table["time_s"] > 0)
            )
            if len(part["time_s"]):
                yield f"{kind}.{ranks}", part["message_size"] * element, part["time_s"]


def _attention_points(table: Table, dtype: str) -> Table:
    """Decodes or prompts of one KV format, without windows."""
    chosen = (table["kv_cache_dtype"] == dtype) & (
        table.get("window_size", np.zeros(len(table["time_s"]))) == 0
    )
    chosen &= (table["num_heads"] % table["num_key_value_heads"] == 0) & (table["time_s"] > 0)
    chosen &= (table["num_heads"] >= 2) & np.isin(table["head_dim"], (64, 128, 256, 512))
    decode = bool((table["step"] > 0).any())
    if not decode:
        chosen &= (table["batch_size"] == 1) & (table["num_key_value_heads"] <= 8)
    part = _where(table, chosen)
    found = {"heads": part["num_heads"], "kv_heads": part["num_key_value_heads"], "head_dim": part["head_dim"],
             "time_s": part["time_s"]}  # fmt: skip
    if decode:
        return found | {"batch": part["batch_size"], "context": part["step"] + part["isl"]}
    return found | {"length": part["isl"]}


def _mla_points(table: Table, dtype: str, gemm: GemmSurface) -> Table:
    """DeepSeek's MLA blocks of one KV format less their products in 16 bits."""
    chosen = (table["gemm_type"] == "bfloat16") & (table["kv_cache_dtype"] == dtype) & (table["time_s"] > 0)
    decode = bool((table["step"] > 0).any())
    if not decode:
        chosen &= table["batch_size"] == 1
    part = _where(table, chosen)
    tokens = part["batch_size"] * (1 if decode else part["isl"])
    products_s = np.zeros(len(tokens))
    for heads in np.unique(part["num_heads"]):
        spec = AttentionSpec(AttentionKind.MLA, int(heads), 1, v_head_dim=128, kv_lora_rank=512, qk_rope_head_dim=64,
                             qk_nope_head_dim=128, q_lora_rank=1536)  # fmt: skip
        curve = gemm.curve([Product(1, n, k) for n, k in projections(spec, 7168, 1)], 0.0)
        here = part["num_heads"] == heads
        products_s[here] = curve(tokens[here].astype(float))
    time_s = np.maximum(part["time_s"] - products_s, LEAST_ATTENTION * part["time_s"])
    ones = np.ones(len(tokens), int)
    found = {"heads": part["num_heads"], "kv_heads": ones, "head_dim": 576 * ones, "time_s": time_s}
    if decode:
        return found | {"batch": part["batch_size"], "context": part["step"] + 1}
    return found | {"length": part["isl"]}


def _without_search(table: Table, scales: Table) -> Table:
    """fp8 products of checkpoints that state the activations' scales: without looking for the largest activation.

    The tables time that search with every fp8 product, and once more alone, by tokens and input features.
    """
    widths = np.unique(scales["k"])
    nearest = widths[np.abs(np.log(table["k"][:, None] / widths)).argmin(axis=1)]
    search_s = np.zeros(len(nearest))
    for width in np.unique(nearest):
        timed = _where(scales, scales["k"] == width)
        order, here = np.argsort(timed["m"]), nearest == width
        search_s[here] = np.interp(table["m"][here], timed["m"][order], timed["time_s"][order])
    return table | {"time_s": np.maximum(table["time_s"] - search_s, MOST_OF_A_PRODUCT * table["time_s"])}


def _at(surface: GemmSurface, outs: float, ins: float) -> float:
    """Mean seconds of a product of 256 and more tokens."""
    return float(surface.column(outs, ins)[(surface.tokens >= 256) & (surface.tokens <= 4096)].mean())


def _where(table: Table, chosen: Any) -> Table:
    return {name: values[chosen] for name, values in table.items()}


def assumed(gpu: GpuSpec) -> dict[str, tuple[float, str]]:
    """What kernel tables cannot tell, with the reason and the range believed."""
    return {
        "step.layer_s": (1e-5, "norms, rotary embedding, activation of a layer: assumed, 5 to 15 us; "
                               "LLMServingSim timed 9 to 11 us of them on an RTX 4090 and an RTX PRO 6000"),
        "step.launch_s": (5e-4, "launches of a layer outside CUDA graphs: assumed, 0.26 to 0.79 ms in published runs"),
        "step.step_s": (1e-4, "embedding, sampling, graph replay: assumed, 50 to 300 us"),
        "step.row_s": (5e-7, "sampler per row: assumed, 0.2 to 1 us"),
        **element_wise(gpu),
        "host.step_s": (2e-3, "CPU time of a step, hidden while the GPU works longer: assumed, 1 to 4 ms"),
        "host.row_s": (1e-5, "CPU time per sequence: assumed, 5 to 20 us"),
    }  # fmt: skip


def _mla_engine(folder: Path, name: str) -> str:
    """Whose MLA blocks to take: TensorRT-LLM's where this engine's take half as long again on the same card.

    Decodes run in CUDA graphs; some tables timed a block's kernels launch by launch (GB300: those of vLLM 0.24 take
    73 us at least, of 0.27 and of TensorRT-LLM 36 and 33).
    """
    own, other = (_newest(folder, "mla", engine, "mla_generation_module_perf") for engine in (name, "trtllm"))
    if own is None or other is None:
        return name
    return "trtllm" if _quickest_s(own) > LAUNCHED_APART * _quickest_s(other) else name


def _quickest_s(path: Path) -> float:
    table = _read(path)
    return float(table["time_s"][(table["gemm_type"] == "bfloat16") & (table["num_heads"] == 16)].min())


def _newest(folder: Path, kind: str, engine: str, file: str) -> Path | None:
    versions = list((folder / kind / engine).glob(f"*/{file}.parquet"))
    return max(versions, key=_version, default=None)


def _version(path: Path) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", path.parent.name)]


def _dtypes(path: Path) -> list[str]:
    return sorted(set(_read(path)["moe_dtype"].tolist()) & {*FORMATS, MXFP4_IN_FP8})


@cache
def _read(path: Path) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise KvplanError("reading the tables needs pyarrow: pip install 'kvplan[aiconfigurator]'") from None
    table = parquet.read_table(path)
    found = {name: np.asarray(table[name].to_pylist()) for name in table.column_names}
    found["time_s"] = 1e-3 * (found.pop("latency") if "latency" in found else found.pop("latency_ms"))
    if "attn_dtype" in found and "head_dim" not in found:  # older tables hold one head size
        found["head_dim"] = np.full(len(found["time_s"]), 128)
    return found
