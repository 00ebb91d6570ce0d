"""Whole-step probes: decode steps eagerly and in CUDA graphs, drafts and their verification, prompts, the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import torch
from torch.nn.functional import rms_norm

from kvplan.calibrate.measure.attention import prefill_call
from kvplan.calibrate.measure.decoder import Decoder, captured, make_layers, mlp, moe, random_tensor
from kvplan.calibrate.measure.device import release
from kvplan.calibrate.measure.grids import HELD_OUT, Grid, StepModel, model_facts, weight_bytes
from kvplan.calibrate.measure.kernels import Kernels, Named, decoding, sdpa_kernel
from kvplan.calibrate.measure.probes import Probe, end_on_a_failed_card, why_skipped
from kvplan.calibrate.measurements import Row
from kvplan.calibrate.session import MeasurementSession, Point


def step_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Whole decode steps over models, batches and contexts, eager and (on a GPU) as CUDA graphs."""
    modes = ("graph", "eager") if device.type == "cuda" else ("eager",)
    probes = []
    for model, batch, context, mode in product(grid.models, grid.step_batches, grid.step_contexts, modes):
        if mode == "eager" and device.type == "cuda" and context != grid.step_contexts[0]:
            continue  # eager differs from graphs by host time, which does not depend on the context
        op = "eager_step" if mode == "eager" and device.type == "cuda" else "decode_step"
        held_out: Point = {"held_out": model.name in HELD_OUT or context >= grid.held_out_context}
        probes += _step_probe(op, model, decoding([context] * batch), mode, held_out, kernels, grid, device)
    return probes


def speculative_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Steps of a draft model, and steps that verify its drafts: 1 + drafts tokens of each sequence at once."""
    mode, context = "graph" if device.type == "cuda" else "eager", grid.step_contexts[0]
    probes = []
    for batch in grid.verify_batches:
        parts = decoding([context] * batch)
        probes += _step_probe("draft_step", grid.draft_model, parts, mode, {}, kernels, grid, device)
        for drafts in grid.drafts:
            parts = [(context - 1, 1 + drafts)] * batch
            facts: Point = {"num_drafts": drafts}
            probes += _step_probe("verify_step", grid.models[0], parts, mode, facts, kernels, grid, device)
    return probes


CAPTURED = 512
"""Tokens of the largest step that engines capture: `kvplan.formulas.graphs.MAX_CAPTURE_SIZE`, not copied along."""


def mixed_step_probes(grid: Grid, device: torch.device, kernels: Kernels) -> list[Probe]:
    """Whole steps of decodes beside a prompt's chunk, all held out: do attention, products and fixed times add up?

    As engines run them: a CUDA graph up to `CAPTURED` tokens, eagerly beyond; smaller ones eagerly too, at one context.
    None on a card without a kernel that takes both: gathering pages first is not what an engine does.
    """
    probes: list[Probe] = []
    if device.type == "cuda" and "bfloat16" not in kernels.mixed:
        return probes
    for model, chunk, batch, context in product(
        grid.models, grid.mixed_chunks, grid.mixed_batches, grid.mixed_contexts
    ):
        facts: Point = {
            "num_decodes": batch, "decode_context": batch * context, "num_prefill_tokens": chunk, "num_prefills": 1,
            "prefill_attention": chunk * chunk / 2, "held_out": True,
        }  # fmt: skip
        parts = [*decoding([context] * batch), (0, chunk)]
        graph = device.type == "cuda" and batch + chunk <= CAPTURED
        modes = {"mixed_step": "graph" if graph else "eager"}
        if graph and context == grid.mixed_contexts[0]:
            modes["eager_mixed_step"] = "eager"
        for op, mode in modes.items():
            probes += _step_probe(op, model, parts, mode, facts, kernels, grid, device, samples_all=False)
    return probes


def _step_probe(
    op: str, model: StepModel, parts: list[tuple[int, int]], mode: str, facts: Point, kernels: Kernels, grid: Grid,
    device: torch.device, samples_all: bool = True,
) -> list[Probe]:  # fmt: skip
    """The probe of one whole step; none where it is too large or cannot run here."""
    lone = all(new == 1 for _, new in parts)
    found = (kernels.decode if lone else kernels.mixed).get("bfloat16")
    if found is None and not lone and mode == "eager":
        found = Named("sdpa", sdpa_kernel)
    contexts = [past + new for past, new in parts]
    kv = sum(contexts) * model.num_layers * model.attention.kv_bytes("bfloat16")
    if (
        found is None
        or kv > grid.max_pool_bytes
        or (mode == "graph" and model.num_experts and not kernels.grouped)
    ):
        return []
    tokens = sum(new for _, new in parts)
    point: Point = {
        **model_facts(model), "mode": mode, "kernel": found.name, "num_tokens": tokens, "num_decodes": len(parts),
        "decode_context": sum(contexts), "max_context": max(contexts), **facts,
    }  # fmt: skip
    kernel = found.kernel

    def prepare() -> list[Callable[[], object]]:
        decoder = Decoder(model, parts, grid.page, kernel, device, samples_all)
        return [captured(decoder.step) if mode == "graph" else decoder.step]

    weights = weight_bytes(model, tokens)
    body, rows = weight_bytes(model._replace(vocab_size=0), 1), tokens if samples_all else len(parts)
    flops = tokens * body + 2.0 * rows * model.hidden_size * model.vocab_size
    return [Probe(op, point, prepare, weights + kv, flops, weights + kv)]


def prefill_step_probes(grid: Grid, device: torch.device) -> list[Probe]:
    """Whole prompt chunks of each model, cut to a few layers and stated as such: a chunk is compute-bound."""
    probes = []
    for model, chunk in product(grid.models, grid.chunks):
        point: Point = {
            **model_facts(model), "num_layers": CHUNK_LAYERS, "mode": "eager", "kernel": "sdpa",
            "num_tokens": chunk, "num_prefill_tokens": chunk, "num_prefills": 1,
            "prefill_attention": chunk * chunk / 2, "held_out": model.name in HELD_OUT,
        }  # fmt: skip

        prepare = partial(_prefill_layers, model, chunk, device)
        flops = chunk * weight_bytes(model._replace(num_layers=CHUNK_LAYERS, vocab_size=0), 1)
        probes.append(Probe("prefill_step", point, prepare, 0.0, flops))
    return probes


CHUNK_LAYERS = 4


def _prefill_layers(model: StepModel, chunk: int, device: torch.device) -> list[Callable[[], object]]:
    layers = make_layers(model, CHUNK_LAYERS, device)
    attend = prefill_call(model.attention, chunk, 0, device)
    start, head = (random_tensor(n, model.hidden_size, device=device) for n in (chunk, model.vocab_size))

    def call() -> torch.Tensor:
        x = start
        for layer in layers:
            rms_norm(x, x.shape[-1:]) @ layer.qkv.T  # attention below has random inputs of its own: same work
            x = x + attend()[0].transpose(0, 1).flatten(1) @ layer.out.T
            z = rms_norm(x, x.shape[-1:])
            x = x + (mlp(layer, z) if layer.router is None else moe(layer, z, model.experts_per_token))
        return (rms_norm(x[-1:], x.shape[-1:]) @ head.T).argmax(-1)

    return [call]


def host_times(
    grid: Grid, session: MeasurementSession, device: torch.device, kernels: Kernels, deadline: float
) -> None:
    """Time the host needs to launch an eager step, without waiting for the GPU: append one row per batch.

    The slope over batches is the host's time per sequence, the rest its time per step.
    """
    model, found = grid.models[0], kernels.decode.get("bfloat16")
    if device.type != "cuda" or found is None:
        return
    for batch in grid.step_batches:
        key = f"host_step {model.name} {batch}"
        row: Row = {"op": "host_step", "machine": session.machine["machine"], "num_decodes": batch}
        if key in session.done or time.monotonic() > deadline:
            continue
        try:
            parts = decoding([grid.step_contexts[0]] * batch)
            times = _launch_times(Decoder(model, parts, grid.page, found.kernel, device))
        except Exception as error:  # larger batches do not fit either, and batches of transformers come next
            session.append(row | {"skipped": why_skipped(error)})
            end_on_a_failed_card(error, row | {"key": key}, session)
            break
        row |= {"model": model.name, "kernel": found.name, "time_s": median(times), "num_repeats": len(times)}
        session.append(row | {"key": key})
        session.done.add(key)
        release(device)


def _launch_times(decoder: Decoder) -> list[float]:
    """Seconds that 10 steps take to launch, each on an idle card; two before them warm up."""
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        decoder.step()
        times.append(time.perf_counter() - start)
    return times[2:]
