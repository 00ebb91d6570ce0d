"""What flags of CUDA graphs do to step times: padding, launches of eager steps, graphs in pieces, and their doubt."""

from __future__ import annotations

import pytest
from test_engine_terms import terms

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.units import TICKS_PER_S
from kvplan.models.load import load_model
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.step import StepShape

QWEN = "Qwen/Qwen3-8B"


def times(model: str = QWEN, gpu: str = "h100", **flags: object) -> StepTimes:
    args = EngineArgs.model_validate({"max_num_seqs": 256} | flags)
    return make_step_times(load_model(model), get_gpu(gpu), args)


def mode(name: str) -> dict[str, object]:
    return {"compilation_config": {"cudagraph_mode": name}}


def decode(found: StepTimes, num: int) -> int:
    return found.step.ticks(StepShape(num, num, 1000 * num))


def mixed(found: StepTimes, tokens: int) -> int:
    return found.step.ticks(StepShape(tokens, tokens - 50, 1000 * (tokens - 50), 50, 1, 1250.0))


def test_steps_are_padded_to_the_sizes_stated() -> None:
    """A batch of 5 among 1 and 64 costs what 64 tokens multiply; finer graphs cost less than the staircase's."""
    wide, plain, fine = (
        times(cudagraph_capture_sizes=(1, 64)),
        times(),
        times(performance_mode="interactivity"),
    )
    assert decode(wide, 5) > decode(plain, 5) > decode(fine, 5)
    assert decode(wide, 64) == decode(plain, 64)
    linear = [found.time._linear_s(StepShape(5, 5, 0)) for found in (wide, plain, fine)]
    rows = times().time.costs.row_s
    padded = [plain.time._linear_s(StepShape(n, n, 0)) - rows * (n - 5) for n in (64, 8)]
    sequences = plain.time.work.num_layer_heads * plain.time.costs.attention.sequence_s
    head = [plain.time._parts.head(n) for n in (64, 8, 5)]  # type: ignore[union-attr]
    for found, whole, logits, n in zip(linear, padded, head, (64, 8), strict=False):
        assert found == pytest.approx(whole - logits + head[2] - sequences * (n - 5))


def test_steps_beyond_the_largest_graph_wait_for_their_launches() -> None:
    small = times(max_cudagraph_capture_size=8)
    assert decode(small, 8) == decode(times(), 8)
    assert decode(small, 9) == decode(times(enforce_eager=True), 9) > decode(times(), 9)


@pytest.mark.parametrize("told", [mode("NONE"), {"optimization_level": 0}, {"enforce_eager": True}])
def test_no_graphs_however_told_are_one_time(told: dict[str, object]) -> None:
    assert decode(times(**told), 4) == decode(times(enforce_eager=True), 4)
    assert mixed(times(**told), 200) == mixed(times(enforce_eager=True), 200)


def test_modes_leave_kinds_of_steps_out() -> None:
    """Of decodes alone: mixed steps launch kernel by kernel. In pieces: decodes launch pieces, mixed steps as ever."""
    plain, alone, pieces, eager = (
        times(), times(**mode("FULL_DECODE_ONLY")), times(**mode("PIECEWISE")), times(enforce_eager=True)
    )  # fmt: skip
    assert decode(alone, 16) == decode(plain, 16)
    assert mixed(alone, 200) == mixed(eager, 200) > mixed(plain, 200)
    assert mixed(pieces, 200) == mixed(plain, 200)
    assert decode(plain, 16) < decode(pieces, 16) < decode(eager, 16)


PUBLIC = [
    (28, 3.64, 1.53), (28, 3.79, 1.60), (28, 4.75, 2.50),
    (94, 13.37, 12.70), (94, 23.93, 22.38), (94, 30.22, 29.56), (28, 5.42, 5.02),
]  # fmt: skip
"""Layers, ms a token in pieces and whole: Qwen3-0.6B and Qwen3-235B-A22B-FP8 at 1, 16 and 128 sequences, vLLM 0.23 on
B200 (vLLM issue 47089); Qwen2.5-1.5B (PR 20059), which the term was not made from."""


@pytest.mark.parametrize(("layers", "pieces_ms", "whole_ms"), PUBLIC)
def test_pieces_cost_what_servers_in_both_modes_took(layers: int, pieces_ms: float, whole_ms: float) -> None:
    """Over the measured time of whole graphs, the term's ends hold the measured time in pieces."""
    told = terms("vllm@0.23").piecewise_ms
    low, high = (((layers * ms) ** 3 + whole_ms**3) ** (1 / 3) for ms in (told.low, told.high))
    assert low * 0.999 <= pieces_ms <= high * 1.001
    assert times(**mode("PIECEWISE")).time.costs.host.piecewise_s == pytest.approx(told.value / 1e3)


def test_what_was_not_measured_is_in_the_printed_doubt() -> None:
    plain, pieces = times().doubt, times(**mode("PIECEWISE")).doubt
    assert pieces.high > plain.high
    assert "cudagraph_mode PIECEWISE: pieces of 0.13 (0.074 to 0.161) ms a layer" in str(pieces)
    assert "cudagraph" not in str(plain)
    whole = times(gpu="rtx-4090", **mode("PIECEWISE")).doubt
    assert "cudagraph_mode PIECEWISE timed as the default's" in str(whole)
    assert whole.high == pytest.approx(2 * times(gpu="rtx-4090").doubt.high)
    assert "without torch.compile" in str(times(optimization_level=0).doubt)


def test_blackwells_graphs_reach_twice_as_far() -> None:
    """vLLM PR 49390; not beyond twice max_num_seqs."""
    reach = [times(gpu="b200", max_num_seqs=n).time.costs.capture_sizes[-1] for n in (256, 512, 1024)]
    assert reach == [512, 1024, 1024]
    assert times(gpu="h100", max_num_seqs=1024).time.costs.capture_sizes[-1] == 512


def test_drafts_are_verified_in_graphs_of_whole_sequences() -> None:
    """Of 3 tokens a sequence: 7 sequences, 21 tokens, are padded to 24, the next multiple of 3 that is captured."""
    costs = times(num_speculative_tokens=2, speculative_method="ngram").time.costs
    assert costs.decode_sizes is not None
    assert costs.whole_decodes is not None
    assert all(n % 3 == 0 for n in costs.decode_sizes if n <= costs.whole_decodes)
    assert min(n for n in costs.decode_sizes if n >= 21) == 24


def test_the_trim_threshold_is_the_users() -> None:
    """DeepSeek V4.1, `decoder_replay_trim_threshold`: must exceed the window of 128 tokens."""
    model, flags = "deepseek-ai/DeepSeek-V4.1-Flash", {"tensor_parallel_size": 8, "max_num_seqs": 1024}
    last = times(model, "b200", **flags, compilation_config={"decoder_replay_trim_threshold": 500}).last
    off = times(model, "b200", **flags, compilation_config={"cudagraph_decoder_replay": False}).last
    assert last is not None
    assert off is not None
    assert (last.whole_up_to, off.whole_up_to) == (499, 1024)
    with pytest.raises(KvplanError, match="decoder_replay_trim_threshold 100: must exceed the window"):
        times(model, "b200", **flags, compilation_config={"decoder_replay_trim_threshold": 100})


def test_seconds_of_many_steps_at_once_are_those_of_each() -> None:
    import numpy as np

    for told in ({}, mode("PIECEWISE"), mode("FULL_DECODE_ONLY")):
        time = times(**told).time
        shapes = [
            StepShape(n, n - k, 1000 * (n - k), k, 1 if k else 0, 9.0 * k)
            for n in (5, 130, 700)
            for k in (0, 4)
        ]
        whole = StepShape(*(np.array(part) for part in zip(*shapes, strict=True)))
        each = [float(time.seconds(shape)) for shape in shapes]
        assert np.allclose(time.seconds(whole), each)
        assert round(each[-1] * TICKS_PER_S) == time.ticks(shapes[-1])
