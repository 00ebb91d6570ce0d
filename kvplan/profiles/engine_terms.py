"""What an engine adds to a step around its kernels, by version: launches, sequences, sampling, kernels it chose then.

Kernel tables hold kernels only. The rest was fitted to whole steps of real servers; each row of
`catalog/engine_terms.yaml` says which, and how far it errs on model families left out. Profiles that were measured in
whole steps hold these terms already and are left alone.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import yaml
from pydantic import Field

from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.engines.generation import leaves_tokens_out
from kvplan.ground.config import Config
from kvplan.ground.files import catalog_dir
from kvplan.ground.gpu import GpuSpec
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.profiles.timing_profile import TimingProfile
from kvplan.timing.work import StepWork

ModelClass = Literal["dense", "experts", "states", "latent"]
PLAIN_SAMPLING = frozenset({"GptOssForCausalLM", "NemotronHForCausalLM"})
"""Architectures whose published generation_config.json states neither top_k nor top_p."""
US, MS = 1e-6, 1e-3


class Ranged(NamedTuple):
    """A fitted time, and the range it had over fits that left out one model family each."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """E.g. 26.6 (24 to 28.2)."""
        return f"{self.value:g} ({self.low:g} to {self.high:g})"


class EngineTerms(Config):
    """One engine from one version on."""

    engine: str
    since: tuple[int, int]
    """First version."""
    until: tuple[int, int] | None = None
    """First version that it no longer holds for; None: the newest."""
    layer_us: Ranged
    """Of a layer beyond its kernels."""
    tensor_parallel_us: Ranged = Ranged(0, 0, 0)
    """More of each layer over several tensor-parallel ranks: they wait for the last one."""
    sequence_us: Ranged
    """Of each running sequence: inputs, logits, sampler, outputs."""
    sampled_us: Ranged = Ranged(0, 0, 0)
    """More of each sequence where top-k or top-p is on."""
    fp8_experts_us: Ranged = Ranged(0, 0, 0)
    """More of each layer of fp8 experts."""
    blackwell_bf16_experts: Ranged = Ranged(1, 1, 1)
    """Time of bf16 experts on Blackwell over the kernel table's: other kernels then."""
    launch_ms: dict[ModelClass, Ranged] = Field(default_factory=dict)
    """Launches of a layer where a step fits no CUDA graph."""
    piecewise_ms: Ranged = Ranged(0, 0, 0)
    """Launches of a layer of decodes that replay graphs in pieces."""
    many_us: dict[str, Ranged] = Field(default_factory=dict)
    """Architecture of the card -> CPU time of each sequence of a step beyond the CUDA graphs."""
    evidence: Literal["fitted", "assumed"]
    source: str
    """Which measurements, and what left-out ones say."""

    @property
    def versions(self) -> str:
        """E.g. vllm 0.11."""
        first = ".".join(map(str, self.since))
        return f"{self.engine} from {first}" + (
            f" to before {'.'.join(map(str, self.until))}" if self.until else ""
        )


@cache
def all_terms() -> tuple[EngineTerms, ...]:
    """Every row of the catalog, in its order."""
    return tuple(
        EngineTerms(**row) for row in yaml.safe_load((catalog_dir() / "engine_terms.yaml").read_text())
    )


def find_terms(engine: EngineVersion) -> EngineTerms | None:
    """The row of an engine's version; None where no whole steps of it were seen."""
    return next((row for row in all_terms() if engine.is_between(row.engine, row.since, row.until)), None)


def with_terms(
    timing: TimingProfile, engine: EngineVersion, model: ModelSpec, gpu: GpuSpec, args: EngineArgs, work: StepWork,
    expert_format: str,
) -> tuple[TimingProfile, str]:  # fmt: skip
    """A profile with what the engine adds where the profile had to assume it, and a note of what that is."""
    terms = find_terms(engine)
    if terms is None or not timing.kernels or "step.layer_s" not in timing.assumed:
        return timing, ""
    num_fp8 = sum(e.num_layers for e in work.experts) if expert_format.startswith("fp8") else 0
    layer_us = terms.layer_us.value + terms.fp8_experts_us.value * num_fp8 / work.num_layers
    layer_us += terms.tensor_parallel_us.value if work.num_ranks > 1 else 0.0
    sampled_us = terms.sampled_us.value if samples(model, args) else 0.0
    values = {
        "step.step_s": 0.0,  # a step's own was fitted too, and came out as none
        "step.layer_s": layer_us * US,
        "step.row_s": (terms.sequence_us.value + sampled_us) * US,
    }
    if terms.launch_ms:
        values["step.launch_s"] = terms.launch_ms[model_class(model)].value * MS
    values["step.piecewise_s"] = terms.piecewise_ms.value * MS
    if gpu.architecture in terms.many_us:
        values["host.many_s"] = terms.many_us[gpu.architecture].value * US
    note = f"around the kernels: {terms.versions}, {terms.evidence}"
    slower = terms.blackwell_bf16_experts.value if gpu.architecture == "blackwell" else 1.0
    return timing.with_values(values, {"moe.bf16.scale": slower}), note


def samples(model: ModelSpec, args: EngineArgs) -> bool:
    """Whether requests are sampled with top-k or top-p unless they say otherwise (`--generation-config`)."""
    otherwise = args.generation_config != "vllm" and model.architecture not in PLAIN_SAMPLING
    return leaves_tokens_out(args.override_generation_config, otherwise)


def model_class(model: ModelSpec) -> ModelClass:
    """What a layer's launches depend on most."""
    if any(m.kind is AttentionKind.MLA for layer in model.layers for m in layer.mixers):
        return "latent"
    return "states" if model.is_hybrid else "experts" if model.is_moe else "dense"
