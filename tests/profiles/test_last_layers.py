"""DeepSeek V4.1's last layers run on the end of each prompt's chunk alone, as vLLM 0.32 runs them."""

from __future__ import annotations

import pytest

from kvplan.engines.flags import EngineArgs
from kvplan.ground.gpu import get_gpu
from kvplan.models.load import load_model
from kvplan.profiles.step_times import LastLayers, StepTimes, make_step_times
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
    assert isinstance(found.step, TrimmedStepTime)
    return found.step, found


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


def test_ranks_that_share_a_sequence_and_drafts_that_look_further_back_run_all_layers_whole() -> None:
    """vLLM 0.32 `_decoder_replay_supported`: sequence parallelism of experts; a draft model of full attention."""
    assert times(data_parallel_size=2, enable_expert_parallel=True).last is None
    assert times(num_speculative_tokens=2, speculative_method="mtp").last is not None
    args = EngineArgs(
        tensor_parallel_size=8, max_num_seqs=256, num_speculative_tokens=2, speculative_method="draft_model"
    )
    beside = make_step_times(V41, get_gpu("h200"), args, draft_model=load_model("Qwen/Qwen3-0.6B"))
    assert beside.last is None


def test_steps_in_a_graph_are_cut_from_768_tokens_on() -> None:
    """Blackwell's graphs reach 1,024 tokens: within them the threshold counts; on Hopper their end at 512."""
    assert [make(card).whole_up_to for card in ("h200", "b200")] == [512, 767]


def make(card: str) -> LastLayers:
    args = EngineArgs(tensor_parallel_size=8, max_num_seqs=1024)
    found = make_step_times(V41, get_gpu(card), args).last
    assert found is not None
    return found
