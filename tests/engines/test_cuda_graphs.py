"""CUDA graphs beside vLLM's own: modes, sizes, numbers, padding and refusals of many flags and models.

`fixtures/graphs_vllm_0.32.json.xz` is what vLLM 0.32.0's `VllmConfig` and `CudaGraphManager` answered
(`tests/models/make_graphs.py`).
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.compilation_config import compilation_text
from kvplan.engines.cuda_graphs import find_graphs
from kvplan.engines.flags import EngineArgs
from kvplan.formulas.graphs import OWN_DECODES, Graphs, Support, capture_sizes, default_sizes, next_size
from kvplan.ground.errors import KvplanError
from kvplan.models.architectures import from_config
from kvplan.models.spec import ModelSpec

TOLD = json.loads(lzma.decompress((FIXTURES / "graphs_vllm_0.32.json.xz").read_bytes()))
CASES: list[dict[str, Any]] = TOLD["cases"]
SUPPORT = {
    "NEVER": Support.NEVER,
    "UNIFORM_SINGLE_TOKEN_DECODE": Support.SINGLE_TOKEN,
    "UNIFORM_BATCH": Support.UNIFORM,
    "ALWAYS": Support.ALWAYS,
}
CAPABILITY = {"H100": 9.0, "B200": 10.0}


@cache
def model(name: str) -> ModelSpec:
    known = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    return from_config(known[name]["config"], name)


def mine(case: dict[str, Any]) -> Graphs:
    told = {"max_num_seqs": 256, "max_num_batched_tokens": 8192} | case["flags"]
    if case["drafts"]:
        told |= {"num_speculative_tokens": case["drafts"], "speculative_method": "eagle"}
    args = EngineArgs(**told)
    return find_graphs(args, model(case["model"]), CAPABILITY[case["gpu"]], support=SUPPORT[case["support"]])


@pytest.mark.parametrize("name", sorted({case["model"] for case in CASES}))
def test_modes_sizes_and_numbers_are_vllms(name: str) -> None:
    """Graphs of decodes alone and of other steps, each set once more for LoRA; refused is what vLLM refuses."""
    for case in (case for case in CASES if case["model"] == name):
        if "refused" in case:
            with pytest.raises(KvplanError):
                mine(case)
            continue
        graphs = mine(case)
        assert (graphs.mode, list(graphs.sizes)) == (case["mode"], case["sizes"]), case
        theirs = sum(case["captured"].values())
        assert graphs.num_captured == theirs, case


@pytest.mark.parametrize("name", sorted({case["model"] for case in CASES}))
def test_steps_are_padded_as_vllm_pads_them(name: str) -> None:
    """To the next graph of their kind, and how that runs; as they are where there is none."""
    for case in (case for case in CASES if case["model"] == name and "refused" not in case):
        graphs = mine(case)
        whole = graphs.own_decode_sizes or (graphs.sizes if graphs.decodes == "full" else ())
        for tokens, alone, padded, kind in case["steps"]:
            size = next_size(tokens, graphs.decode_sizes if alone else graphs.other_sizes)
            assert (size or tokens) == padded, (case, tokens, alone)
            one = size in whole and size <= max(whole) if alone else graphs.others == "full"
            expected = "NONE" if not size else "FULL" if one else "PIECEWISE"
            assert expected == kind, (case, tokens, alone)


def test_most_answers_are_there() -> None:
    assert len(CASES) > 500
    assert {case["mode"] for case in CASES if "mode" in case} == {
        *("NONE", "PIECEWISE", "FULL", "FULL_DECODE_ONLY", "FULL_AND_PIECEWISE")
    }
    assert sum("refused" in case for case in CASES) >= 30


def test_the_first_runner_rounds_every_size_to_whole_sequences() -> None:
    """vLLM 0.32 `config/compilation.py: adjust_cudagraph_sizes_for_spec_decode`, its docstring's issue 28207."""
    args = EngineArgs(num_speculative_tokens=2, cudagraph_capture_sizes=(1, 2, 4, 8, 16))
    found = find_graphs(args, model("Qwen3ForCausalLM"), 9.0, rounds_all=True)
    assert found.sizes == (3, 6, 9)
    with pytest.raises(KvplanError, match="none holds a sequence of 3 tokens"):
        find_graphs(
            EngineArgs(num_speculative_tokens=2, cudagraph_capture_sizes=(1, 2)),
            model("Qwen3ForCausalLM"),
            9.0,
            rounds_all=True,
        )


def test_a_stated_largest_adds_no_decode_batches() -> None:
    """vLLM issue 54933: 42 is cut to 40, and six sequences of seven tokens fit no graph."""
    assert default_sizes(6, 8192, width=7, stated_max=42)[-1] == 40
    assert capture_sizes(20, fine=True) == tuple(range(1, 21))


def test_the_json_is_kept_in_one_spelling() -> None:
    told = compilation_text(
        {"mode": 3, "cudagraph_mode": "CUDAGraphMode.FULL", "cudagraph_capture_sizes": [1]}
    )
    assert told == '{"cudagraph_capture_sizes": [1], "cudagraph_mode": "FULL", "mode": "VLLM_COMPILE"}'
    assert compilation_text(told) == told
    assert compilation_text("{}") is None


def test_classes_that_are_not_compiled_have_no_pieces() -> None:
    """vLLM 0.32 `resolve_cudagraph_mode_and_sizes`: neither a compiled submodule nor breakable graphs."""
    for name in ("DbrxForCausalLM", "Step1ForCausalLM"):
        assert find_graphs(EngineArgs(), model(name), 9.0).mode == "FULL_DECODE_ONLY"
        told = EngineArgs(env="VLLM_USE_BREAKABLE_CUDAGRAPH=1")
        assert find_graphs(told, model(name), 9.0).mode == "FULL_AND_PIECEWISE"


def test_the_variable_says_whether_pieces_break_themselves() -> None:
    """Without it GLM's class is compiled by nobody; with it a dense model is not compiled either."""
    off, on = (EngineArgs(env=f"VLLM_USE_BREAKABLE_CUDAGRAPH={n}") for n in (0, 1))
    assert find_graphs(off, model("GlmMoeDsaForCausalLM"), 9.0).mode == "FULL_DECODE_ONLY"
    dense = model("Qwen3ForCausalLM")
    assert find_graphs(on, dense, 9.0) == find_graphs(off, dense, 9.0)
    asked = on.model_copy(update={"compilation_config": '{"mode": "NONE"}'})
    assert find_graphs(asked, dense, 9.0).mode == "FULL_AND_PIECEWISE"
    assert find_graphs(asked.model_copy(update={"env": None}), dense, 9.0).mode == "FULL_DECODE_ONLY"


TIERED: list[dict[str, Any]] = json.loads((FIXTURES / "draft_tiers_vllm_0.32.json").read_text())
"""What vLLM answers where drafts hang on the batch, by both model runners (`make_graphs.py --tiers`)."""


TRIMMED = [case for case in TIERED if "trimmed" in case]
"""Those where drafts are left out on the card."""
TIERED = [case for case in TIERED if "tiers" in case]


def trimmed(case: dict[str, Any]) -> Graphs:
    told = {"max_num_seqs": 256, "max_num_batched_tokens": 8192} | case["flags"]
    told |= {"num_speculative_tokens": case["drafts"], "speculative_method": "eagle"}
    told |= {"speculative_config": {"enable_adaptive_verification": True}}
    return find_graphs(EngineArgs(**told), model("Qwen3ForCausalLM"), 9.0)


def test_graphs_take_any_number_of_drafts_where_some_are_left_out() -> None:
    """No size is rounded to whole sequences, full graphs are kept apart from pieces; without any it is refused."""
    for case in TRIMMED:
        if case["flags"].get("enable_lora"):
            assert "LoRA" in case["refused"]
            continue
        if "refused" in case:
            with pytest.raises(KvplanError, match="requires full CUDA graphs"):
                trimmed(case)
            continue
        graphs = trimmed(case)
        assert (graphs.mode, list(graphs.sizes)) == (case["mode"], case["sizes"]), case
        assert graphs.num_captured == sum(case["captured"].values()), case
        for tokens, requests, padded, kind in case["steps"]:
            size = next_size(tokens, graphs.decode_sizes)
            how = "NONE" if not size else "FULL" if size in graphs.own_decode_sizes else "PIECEWISE"
            assert (size or tokens, how) == (padded, kind), (case, tokens, requests)
    assert sum("refused" in case for case in TRIMMED) < len(TRIMMED) / 2


def tiered(case: dict[str, Any]) -> Graphs:
    told = {"max_num_seqs": 256, "max_num_batched_tokens": 8192} | case["flags"]
    told |= {"num_speculative_tokens": case["drafts"], "speculative_method": "ngram_gpu"}
    told |= {"speculative_config": {"num_speculative_tokens_per_batch_size": case["tiers"]}}
    rounds = not case["second"]
    return find_graphs(EngineArgs(**told), model("Qwen3ForCausalLM"), 9.0, rounds_all=rounds)


def test_each_number_of_drafts_has_its_graphs() -> None:
    """Modes, sizes, numbers and padding; over data-parallel ranks vLLM drafts as many in every step."""
    for case in TIERED:
        graphs = tiered(case)
        assert bool(graphs.widths) == case["dynamic"], case
        if not case["second"]:
            if case["dynamic"]:
                assert graphs.mode == case["mode"], case
                assert list(graphs.sizes) == case["sizes"], case
            continue
        assert (graphs.mode, list(graphs.sizes)) == (case["mode"], case["sizes"]), case
        assert graphs.num_captured == sum(case["captured"].values()), case
        for tokens, each, padded, kind in case["steps"]:
            size, how = graphs.decode_graph(tokens, each)
            assert (size or tokens, how.upper() or "NONE") == (padded, kind), (case, tokens, each)


def test_tiers_show_in_every_answer() -> None:
    """Most have graphs that a fixed number of drafts has not."""
    apart = [case for case in TIERED if case["dynamic"] and case["second"] and case["mode"] in OWN_DECODES]
    fixed = [tiered(case | {"tiers": [[1, 1, case["drafts"]]]}).num_captured for case in apart]
    assert sum(sum(case["captured"].values()) != num for case, num in zip(apart, fixed, strict=True)) > 20
