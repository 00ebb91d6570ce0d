"""`kvplan models`, `gpus` and `support`: what is bundled, what is planned, how it was checked."""

from __future__ import annotations

import sys
from typing import Annotated

from kvplan.cli.options import SWITCH, print_json
from kvplan.cli.terminal import show
from kvplan.engines.flags import beyond_known, parse_engine
from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.ground.gpu import GpuSpec, get_gpu, gpu_names, split_count
from kvplan.ground.tables import Column, Table, make_table
from kvplan.memory.forward import estimate
from kvplan.models.architectures import architectures, how_checked
from kvplan.models.load import bundled_models, load_model
from kvplan.models.spec import ModelSpec
from kvplan.profiles.memory_profile import memory_profile


def gpus_command(*, all: Annotated[bool, SWITCH] = False, json: Annotated[bool, SWITCH] = False) -> int:
    """List the GPU table: usable memory, rates, links, prices, sources.

    For example:

        kvplan gpus --all

    Parameters
    ----------
    all
        MIG slices too.
    json
        One JSON document on stdout.
    """
    cards = [get_gpu(name) for name in gpu_names() if all or json or "-mig-" not in name]
    if json:
        print_json({"schema_version": 1, "gpus": [card.model_dump(mode="json") for card in cards]})
        return 0
    show([make_table(COLUMNS, cards, frozenset({0, 5, 7}))])
    print(
        "Usable: what CUDA reports. bf16, fp8: dense TFLOP/s. Prices: on demand (--price-per-hour). Sources: --json",
        file=sys.stderr,
    )
    return 0


COLUMNS: tuple[Column[GpuSpec], ...] = (
    ("name", lambda card: card.name),
    ("usable GiB", lambda card: f"{card.usable_gib:.2f}"),
    ("GB/s", lambda card: f"{card.bandwidth_gb_s:,.0f}"),
    ("bf16", lambda card: f"{card.flops('bf16') / 1e12:,.0f}"),
    ("fp8", lambda card: f"{card.dense_tflops['fp8']:,.0f}" if card.dense_tflops.get("fp8") else "-"),
    ("link", lambda card: card.interconnect),
    ("$/h", lambda card: f"{card.price_per_hour:.2f}"),
    ("", lambda card: "shared with the host" if card.unified_memory else ""),
)


def models_command(
    pattern: str = "",
    /,
    *,
    family: Annotated[bool, SWITCH] = False,
    json: Annotated[bool, SWITCH] = False,
) -> int:
    """List the bundled models.

    For example:

        kvplan models qwen3

        kvplan models --family

    Parameters
    ----------
    pattern
        Only names that contain it.
    family
        Instead, every architecture that is planned, and how it was checked.
    json
        One JSON document on stdout.
    """
    if family:
        return _families(pattern, json)
    names = [name for name in bundled_models() if pattern.casefold() in name.casefold()]
    if json:
        print_json({"schema_version": 1, "models": [model_facts(name, load_model(name)) for name in names]})
        return 0
    print("\n".join(names) if names else f"no bundled model's name contains {pattern!r}")
    return 0 if names else 1


def model_facts(name: str, model: ModelSpec) -> dict[str, object]:
    """What one asks of a model first, as plain values."""
    return {
        "name": name,
        "architecture": model.architecture,
        "num_layers": len(model.layers),
        "max_model_len": model.max_model_len,
        "attention": sorted({str(mixer.kind) for layer in model.layers for mixer in layer.mixers}),
        "source": model.source,
    }


def _families(pattern: str, json: bool) -> int:
    found = {name: how_checked(name) for name in architectures() if pattern.casefold() in name.casefold()}
    if json:
        print_json({"schema_version": 1, "architectures": found})
        return 0 if found else 1
    show([Table(("", ""), tuple(found.items())) if found else f"no architecture contains {pattern!r}"])
    return 0 if found else 1


def support_command(model: str, gpu: str = "h100", engine: str = "vllm", /) -> int:
    """Say in one line whether a model, a card and an engine are planned, and how each was checked.

    For example:

        kvplan support deepseek-ai/DeepSeek-V4-Flash h200 vllm@0.32

    Parameters
    ----------
    model
        A bundled name, a config.json, or a folder that holds one.
    gpu
        A name of `kvplan gpus`, or a stated card.
    engine
        vllm, sglang or tensorrt-llm, with an optional @version.
    """
    try:
        spec = load_model(model)
    except KvplanError as error:
        print(f"refused: {error}")
        return 1
    card, version = get_gpu(split_count(gpu)[1]), parse_engine(engine)
    if newest := beyond_known(version):
        print(f"not known: {version}; the newest known is {newest}, by whose rules it would be planned")
        return 1
    try:
        estimate(spec, card, engine=engine)
    except DoesNotFit:
        pass  # larger than one card: planned on several
    except KvplanError as error:
        print(f"refused: {error}")
        return 1
    form = str((spec.quantization or {}).get("quant_method", spec.dtype))
    tower = ""
    if spec.vision:
        tower = (
            "; tower not known: --language-model-only"
            if spec.vision.family == "unlisted"
            else "; with its tower"
        )
    assumed = spec.assumed and f"assumed: {spec.assumed}; "
    learned = memory_profile(version.engine, version.version, version.legacy)
    seen = "from logs" if learned.has_seen(card) else "assumed, no log of this kind of card"
    print(
        f"{assumed}planned: {spec.architecture} ({assumed or how_checked(spec.architecture)}{tower}), {form}; "
        f"{card.name} ({_how_known(card)}); {version} (overheads {seen})"
    )
    return 0


def _how_known(card: GpuSpec) -> str:
    """Where its usable memory comes from."""
    return "memory assumed" if "assumed" in card.source or "estimated" in card.source else card.source
