"""Steps with weights in host memory: laws of the link, and of copies ahead beside a simulation of both streams."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.step_times import make_step_times
from kvplan.timing.copies import CopiedStepTime, Prefetches
from kvplan.timing.step import StepShape
from kvplan.timing.work import HostReads

MODEL, CARD = "Qwen/Qwen3-32B", "h100"


class Level:
    """A step of so many ticks and one for each token of context."""

    def __init__(self, base: int) -> None:
        self.base = base

    def ticks(self, shape: StepShape) -> int:
        return self.base + int(shape.decode_context)

    def decode_line(self, num_decodes: int, decode_context: int, num_tokens: int = 0) -> tuple[int, int, int]:
        return self.base, 1, 1 << 62


def played(copies: Prefetches, layer_ticks: float) -> float:
    """One pass on two streams, event by event: a copy starts when it was asked for and the one before has ended."""
    asked: list[tuple[float, int]] = []
    ready = dict.fromkeys(range(sum(copies.is_copied)), 0.0)
    clock = stream = 0.0
    place = 0
    for is_copied in copies.is_copied:
        if is_copied:
            clock = max(clock, ready[place])
        clock += layer_ticks
        if is_copied:
            asked.append((clock, copies.next_copied(place)))
            stream = max(stream, clock) + copies.copy_ticks
            ready[copies.next_copied(place)] = stream
            place += 1
    return max(clock, stream) if asked else clock


@pytest.mark.parametrize("seed", range(30))
def test_a_step_is_what_both_streams_take(seed: int) -> None:
    """The convex function equals the play of both streams at every compute time, and decode lines hold to their end."""
    draw = random.Random(seed)
    layers = draw.randint(4, 40)
    group = draw.randint(1, layers)
    inside = draw.randint(1, group)
    copies = Prefetches(
        tuple(i % group >= group - inside for i in range(layers)), draw.uniform(1e3, 1e6), draw.randint(1, 6)
    )
    time = CopiedStepTime.of(Level(0), copies, 0.0)
    for _ in range(20):
        whole = draw.randint(1, 10**8)
        expected = played(copies, whole / layers)
        assert time.ticks(StepShape(0, 0, whole)) == pytest.approx(expected, rel=1e-6, abs=2)
    at = 1
    while at < 10**8:
        a, b, limit = time.decode_line(1, at)
        for context in {at, min(limit, 10**8) - 1}:
            assert time.ticks(StepShape(1, 1, context)) == a + b * context
        at = limit


def test_copies_hide_behind_layers_or_bound_the_step() -> None:
    """One layer of eight: far ahead the longer of both streams, with one buffer copies wait for the layer before."""
    copies = Prefetches(tuple(i % 8 == 7 for i in range(64)), 1000.0, 2)
    assert copies.pass_line(1e6)[0].of(1e6) == pytest.approx(64e6, rel=1e-3)
    assert copies.pass_line(1.0)[0].of(1.0) == pytest.approx(8 * 1000, rel=0.02)
    alone = replace(copies, ahead=1)
    assert alone.pass_line(1.0)[0].of(1.0) > copies.pass_line(1.0)[0].of(1.0)
    assert not sum(Prefetches((False,) * 4, 5.0, 1).is_copied)


def test_reads_over_the_link_take_what_the_link_takes() -> None:
    """10 GiB at 54 GB/s, less what the card's own memory would have taken, whatever the batch."""
    model, card = load_model(MODEL), get_gpu(CARD)
    plain = make_step_times(model, card, EngineArgs())
    moved = make_step_times(model, card, EngineArgs(cpu_offload_gb=10))
    work = moved.time.work
    assert work.host is not None
    assert 10 * 2**30 <= work.host.dense_bytes <= 10.5 * 2**30
    for batch in (1, 64, 512):
        shape = StepShape(batch, batch, batch * 1000)
        more = (moved.step.ticks(shape) - plain.step.ticks(shape)) / 1e12
        own = work.host.dense_bytes / moved.time.costs.attention.bytes_per_s
        assert more == pytest.approx(work.host.dense_bytes / 54e9 - own, rel=0.05)
    assert moved.doubt.high > plain.doubt.high
    assert any("54 GB/s" in note for note in moved.notes)


def test_of_experts_only_those_visited_are_read() -> None:
    """One token of Qwen3-30B-A3B visits 8 of 128 experts; a long prompt all of them."""
    model, card = load_model("Qwen/Qwen3-30B-A3B"), get_gpu(CARD)
    args = EngineArgs(cpu_offload_gb=200, cpu_offload_params=("experts",))
    time = make_step_times(model, card, args).time
    whole = HostReads(0, time.work.host.expert_bytes) if time.work.host else None
    assert whole == time.work.host
    reads = time._host_reads()
    assert reads is not None
    assert reads(1) / reads(10**6) == pytest.approx(8 / 128)
    assert whole is not None
    assert whole.expert_bytes == 48 * 128 * 3 * 2048 * 768 * 2


def test_more_in_host_memory_is_never_sooner() -> None:
    """Steps get longer with every GiB and every layer that leaves the card."""
    model, card, shape = load_model(MODEL), get_gpu(CARD), StepShape(32, 32, 64000)
    for flags in (
        [{"cpu_offload_gb": gib} for gib in (0, 1, 5, 20, 60)],
        [{"offload_group_size": size, "offload_prefetch_step": 2} for size in (0, 16, 8, 4, 1)],
    ):
        ticks = [make_step_times(model, card, EngineArgs(**told)).step.ticks(shape) for told in flags]
        assert ticks == sorted(ticks)
        assert ticks[-1] > 2 * ticks[0]
