"""`kvplan models` and `kvplan gpus`: what is bundled."""

from __future__ import annotations

import sys
from typing import Annotated

from kvplan.cli.options import SWITCH, print_json
from kvplan.gpu import GpuSpec, get_gpu, gpu_names
from kvplan.models.load import bundled_models, load_model
from kvplan.models.spec import ModelSpec


def gpus_command(*, all: Annotated[bool, SWITCH] = False, json: Annotated[bool, SWITCH] = False) -> int:
    """List the GPU table: usable memory, rates, links, assumed prices, sources.

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
    print(f"{'name':<20}{'usable GiB':>11}{'GB/s':>8}{'bf16':>8}{'fp8':>8} TFLOP/s  {'link':<20}{'$/h':>6}")
    for card in cards:
        print(_gpu_line(card))
    print(
        "Usable: what CUDA reports. Rates dense. Prices assumed (--price-per-hour). Sources: --json",
        file=sys.stderr,
    )
    return 0


def _gpu_line(card: GpuSpec) -> str:
    half, eighth = card.flops("bf16") / 1e12, card.dense_tflops.get("fp8")
    fp8 = f"{eighth:>8,.0f}" if eighth else f"{'-':>8}"
    note = "   shared with the host" if card.unified_memory else ""
    rates = f"{card.bandwidth_gb_s:>8,.0f}{half:>8,.0f}{fp8}"
    size, link = f"{card.name:<20}{card.usable_gib:>11.2f}", f"{card.interconnect:<20.20}"
    return f"{size}{rates}          {link}{card.price_per_hour:>6.2f}{note}"


def models_command(pattern: str = "", /, *, json: Annotated[bool, SWITCH] = False) -> int:
    """List the bundled models.

    Parameters
    ----------
    pattern
        Only names that contain it.
    json
        One JSON document on stdout.
    """
    names = [name for name in bundled_models() if pattern.casefold() in name.casefold()]
    if json:
        print_json({"schema_version": 1, "models": [_model_facts(name, load_model(name)) for name in names]})
        return 0
    print("\n".join(names) if names else f"no bundled model's name contains {pattern!r}")
    return 0 if names else 1


def _model_facts(name: str, model: ModelSpec) -> dict[str, object]:
    return {
        "name": name,
        "architecture": model.architecture,
        "num_layers": len(model.layers),
        "max_model_len": model.max_model_len,
        "attention": sorted({str(mixer.kind) for layer in model.layers for mixer in layer.mixers}),
        "source": model.source,
    }
