"""How far step times may be off where flags leave CUDA graphs out, cut them in pieces or leave out compilation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kvplan.engines.compilation_config import compilation_flags
from kvplan.engines.flags import EngineArgs, EngineVersion
from kvplan.formulas.graphs import Graphs
from kvplan.models.spec import ModelSpec
from kvplan.profiles.doubt import Unmeasured
from kvplan.profiles.engine_terms import MS, Ranged, find_terms, model_class
from kvplan.timing.step import ModelStepTime, StepShape

DEFAULT = "full", "piecewise"
"""How decodes and other steps run unless flags say otherwise."""
UNKNOWN_LAUNCHES = 1.0, 2.0
"""Of steps whose launches no measurement of the card tells (assumed)."""
UNCOMPILED = 1.0, 1.3
"""Of steps without torch.compile's fusions (assumed)."""


def graph_doubts(
    graphs: Graphs, args: EngineArgs, engine: EngineVersion, model: ModelSpec, time: ModelStepTime
) -> Iterator[Unmeasured]:
    """One for launches that graphs do not spare, one for kernels that are not fused."""
    terms, host = find_terms(engine), time.costs.host
    if not engine.is_vllm(0, 11) or terms is None:
        return
    if (graphs.decodes, graphs.others) != DEFAULT and not model.encoded_tokens:
        if host.launch_s or host.piecewise_s:
            pieces = graphs.decodes == "piecewise"
            told = terms.piecewise_ms if pieces else terms.launch_ms.get(model_class(model), Ranged(0, 0, 0))
            yield _span(time, graphs.mode, told, pieces=pieces)
        else:
            yield Unmeasured(f"cudagraph_mode {graphs.mode} timed as the default's", *UNKNOWN_LAUNCHES)
    told_mode = compilation_flags(args.compilation_config).mode
    if told_mode not in (None, "VLLM_COMPILE") or args.optimization_level == 0:
        yield Unmeasured("without torch.compile: kernels timed as the compiled ones'", *UNCOMPILED)


def _span(time: ModelStepTime, mode: str, told: Ranged, *, pieces: bool) -> Unmeasured:
    """What the ends of a fitted launch time make of a decode of one sequence, which waits for launches longest."""
    shape, ratios = StepShape(1, 1, 1000), []
    for end in (told.low, told.high):
        host = time.costs.host
        host = replace(host, piecewise_s=end * MS) if pieces else replace(host, launch_s=end * MS)
        costs = replace(time.costs, host=host)
        ratios.append(ModelStepTime(time.work, costs).ticks(shape) / time.ticks(shape))
    kind = "pieces" if pieces else "launches"
    return Unmeasured(
        f"cudagraph_mode {mode}: {kind} of {told} ms a layer", min(1.0, *ratios), max(1.0, *ratios)
    )
