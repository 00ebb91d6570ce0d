"""DeepSeek V4.1's last layers run on the end of each prompt's chunk alone, as vLLM 0.32 runs them."""

from __future__ import annotations

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.step_times import StepTimes, make_step_times
from kvplan.timing.step import StepShape, TrimmedStepTime

V41 = load_model("deepseek-ai/DeepSeek-V4.1-Flash")


def times(**flags: object) -> StepTimes:
    args = EngineArgs(tensor_parallel_size=8, max_num_seqs=256, max_num_batched_tokens=8192, **flags)  # type: ignore[arg-type]
    return make_step_times(V41, get_gpu("h200"), args)


def prefill(chunks: list[int], num_decodes: int = 0) -> StepShape:
    tokens = sum(chunks)
    pairs = sum(n * n / 2 for n in chunks)
    return StepShape(tokens + num_decodes, num_decodes, 4000 * num_decodes, tokens, len(chunks), pairs)


def trimmed() -> tuple[TrimmedStepTime, StepTimes]:
    found = times()
    assert found.last is not None
    return TrimmedStepTime(found.time, found.last.time, found.last.window), found


def test_half_of_the_layers_are_spared() -> None:
    """Layers 20 to 39 of 40: the last that makes latents is `kv_source_layer_ids`' 20, windows have 128 tokens."""
    time, found = trimmed()
    assert (time.last.work.num_layers, time.time.work.num_layers, time.window) == (20, 40, 128)
    share = time.ticks(prefill([8192])) / found.time.ticks(prefill([8192]))
    assert 0.45 < share < 0.6


@pytest.mark.parametrize("chunks", [[8192], [700, 1300, 6000], [4096, 4096]])
def test_what_is_spared_is_what_the_last_layers_take_of_the_rest(chunks: list[int]) -> None:
    time, found = trimmed()
    kept = prefill([128] * len(chunks))
    pairs = prefill(chunks).prefill_attention * kept.num_prefill_tokens / sum(chunks)
    spared = time.last.ticks(prefill(chunks)) - time.last.ticks(kept._replace(prefill_attention=pairs))
    assert time.ticks(prefill(chunks)) == found.time.ticks(prefill(chunks)) - spared
    assert spared > 0


def test_decodes_short_chunks_and_steps_in_graphs_run_whole() -> None:
    time, found = trimmed()
    for shape in (StepShape(64, 64, 64 * 9000), prefill([100] * 10, 8), prefill([300], 4)):
        assert time.ticks(shape) == found.time.ticks(shape)
    assert time.decode_line(64, 64 * 9000) == found.time.decode_line(64, 64 * 9000)


def test_it_takes_the_flag_one_stage_and_vllm() -> None:
    """Two stages cut the model at layer 20, so the last still holds all that follow; four do not."""
    assert times(swa_bounded_replay=False).last is None
    assert times(pipeline_parallel_size=2).last is not None
    assert times(pipeline_parallel_size=4).last is None
    dense = make_step_times(load_model("Qwen/Qwen3-8B"), get_gpu("h200"), EngineArgs(max_num_seqs=256))
    assert dense.last is None
