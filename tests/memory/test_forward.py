"""Laws of a memory plan: rows add up, more memory never holds less, options fit, prompts are shared as vLLM shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from places import TRUTH

from kvplan.engines.flags import EngineArgs, EngineVersion, parse_engine
from kvplan.engines.rank_weights import rank_weights
from kvplan.engines.resolve import resolve
from kvplan.engines.sglang_defaults import defaults, mem_fraction_static
from kvplan.engines.spelling import WORDS, spell, understand, unspoken
from kvplan.ground.errors import DoesNotFit, KvplanError
from kvplan.ground.gpu import get_gpu
from kvplan.ground.limits import Limit
from kvplan.ground.units import GiB
from kvplan.memory.budget import Colocated
from kvplan.memory.demand import Demand, TraceBlocks, trace_blocks
from kvplan.memory.forward import answer, estimate
from kvplan.memory.graphs import engine_graphs
from kvplan.memory.inverse import what_would_fit
from kvplan.memory.serve_command import serve_flags, shell_command, yaml_config
from kvplan.models.load import from_config, load_model
from kvplan.observed.log_flags import read_flags

QWEN = "Qwen/Qwen3-8B"
MODELS = (
    QWEN,
    "Qwen/Qwen3-30B-A3B",
    "google/gemma-3-27b-it",
    "deepseek-ai/DeepSeek-V2-Lite",
    "Qwen/Qwen3.5-27B",
)


@pytest.mark.parametrize("engine", ["vllm", "vllm@0.19", "vllm@0.11", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize("model", MODELS[:2])
def test_rows_add_up_to_the_card(model: str, engine: str) -> None:
    """Every byte of the card has one row."""
    plan = estimate(model, "h100", engine=engine)
    assert sum(row.size.value for row in plan.budget.rows) == plan.budget.total.size.value
    assert plan.budget.total.size.value == get_gpu("h100").total_bytes
    assert all(row.size.low <= row.size.value <= row.size.high for row in plan.budget.rows)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=12, deadline=None)
@given(low=st.integers(2, 60), more=st.integers(0, 60), length=st.integers(64, 30000))
def test_more_memory_never_holds_less(model: str, low: int, more: int, length: int) -> None:
    """Blocks, tokens, concurrency and traces grow with the pool."""
    spec, demand = load_model(model), Demand(input_len=32, output_len=length)
    pools = [
        EngineArgs(kv_cache_memory_bytes=n * GiB, max_model_len=-1, max_num_seqs=8) for n in (low, low + more)
    ]
    small, large = (estimate(spec, "b200", pool, demand=demand) for pool in pools)
    if small.layout is None:
        return
    assert large.layout is not None
    assert small.layout.num_blocks <= large.layout.num_blocks
    assert small.max_model_len <= large.max_model_len
    assert small.traces.value <= large.traces.value


@given(alone=st.integers(1, 500), data=st.data(), usable=st.integers(0, 5000), num_samples=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_most_traces_is_the_largest_that_fits(
    alone: int, data: st.DataObject, usable: int, num_samples: int
) -> None:
    """n traces fit and n + 1 do not, prompts shared within each request."""
    blocks = TraceBlocks(alone, data.draw(st.integers(0, alone - 1)))
    most = blocks.most_traces(usable + 1, num_samples)  # the null block serves nobody
    assert blocks.of(most, num_samples) <= usable or most == 0
    assert blocks.of(most + 1, num_samples) > usable


@pytest.mark.parametrize("output_len", [1000, 30_000])
def test_the_printed_range_holds_the_printed_traces(output_len: int) -> None:
    """Whether KV memory or max_num_seqs limits them; a range of one number is not printed."""
    plan = estimate("Qwen3-8B", "h200", output_len=output_len)
    low, high = plan.num_traces_range
    assert low <= plan.num_traces <= high <= plan.max_num_seqs
    line = next(line for line in str(plan).splitlines() if "at once" in line)
    assert (f"({low:,}-{high:,})" in line) == (low != high)
    assert ("limited by max_num_seqs" in line) == (low == high == plan.max_num_seqs)


def test_shared_prompt_as_the_field_counts_it() -> None:
    """8 branches of 1,000 tokens over a prompt of 4,000: 761 blocks of 16, since vLLM's hits stop one block short."""
    plan = estimate(QWEN, "h100")
    assert plan.layout is not None
    blocks = trace_blocks(plan.layout, plan.args, 5000, 4000, 8)
    assert blocks.of(8, 8) == 761
    alone = trace_blocks(
        plan.layout, plan.args.model_copy(update={"enable_prefix_caching": False}), 5000, 4000, 8
    )
    assert alone.of(8, 8) == 8 * 313


def test_bytes_of_the_field() -> None:
    """Llama-3.1-8B keeps 131,072 bytes a token; 70B 327,680; DeepSeek-R1 70,272 on every rank of TP 8."""
    for model, args, num_bytes in (
        ("meta-llama/Llama-3.1-8B-Instruct", EngineArgs(), 131_072),
        ("meta-llama/Llama-3.1-70B", EngineArgs(), 327_680),
        ("deepseek-ai/DeepSeek-R1", EngineArgs(tensor_parallel_size=8), 70_272),
    ):
        assert estimate(model, "h200", args).to_dict()["kv"]["bytes_per_token"] == num_bytes


def test_weights_agree_with_the_plan() -> None:
    """The plan's weights row is the model's weights on its heaviest rank, whatever the split."""
    for tp in (1, 2, 4):
        args = EngineArgs(tensor_parallel_size=tp)
        assert estimate(QWEN, "h100", args).budget.weights.size.value == rank_weights(load_model(QWEN), args)


# Keywords


def test_flags_and_lengths_as_keywords() -> None:
    """The same plan as with objects; counts as vLLM reads them; both may stand side by side."""
    flags = {"tensor_parallel_size": 2, "max_model_len": 32_768, "kv_cache_dtype": "fp8"}
    load = {"input_len": 512, "output_len": 32_000, "num_samples": 4}
    objects = estimate(QWEN, "h100", EngineArgs(**flags), demand=Demand(**load))  # type: ignore[arg-type]
    assert estimate(QWEN, "h100", **flags, **load).to_dict() == objects.to_dict()  # type: ignore[arg-type]
    spelled = flags | load | {"max_model_len": "32K", "output_len": "32k"}
    assert estimate(QWEN, "h100", **spelled).to_dict() == objects.to_dict()  # type: ignore[arg-type]
    beside = estimate(QWEN, "h100", EngineArgs(tensor_parallel_size=2), max_num_seqs=8)
    assert (beside.args.tensor_parallel_size, beside.args.max_num_seqs) == (2, 8)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"tensor_paralel_size": 2}, "no keyword 'tensor_paralel_size'; did you mean tensor_parallel_size"),
        ({"output_length": 2}, "did you mean output_len"),
        (
            {"args": EngineArgs(max_num_seqs=8), "max_num_seqs": 8},
            "max_num_seqs is given twice, in EngineArgs",
        ),
        ({"demand": Demand(output_len=8), "output_len": 8}, "output_len is given twice, in Demand"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size 0: must be greater than or equal to 1"),
        ({"output_len": "many"}, "output_len: 'many' is not a count"),
    ],
)
def test_keywords_are_refused_by_name(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(KvplanError, match=words) as refused:
        estimate(QWEN, "h100", **keywords)
    assert "\n" not in str(refused.value)


# Defaults of the engine


@pytest.mark.parametrize(
    ("gpu", "engine", "entry_point", "tokens", "seqs"),
    [
        ("h100", "vllm", "serve", 8192, 1024),
        ("h100", "vllm", "llm", 16384, 1024),
        ("a100", "vllm", "serve", 2048, 256),
        ("l40s", "vllm", "llm", 8192, 256),
        ("b200", "vllm", "serve", 16384, 1024),
        ("rtx-4090", "vllm", "serve", 2048, 256),
        ("rtx-pro-6000", "vllm", "serve", 8192, 1024),
    ],
)
def test_batch_defaults(gpu: str, engine: str, entry_point: str, tokens: int, seqs: int) -> None:
    """Source: vLLM 0.32 `engine/arg_utils.py: get_batch_defaults`."""
    args = resolve(EngineArgs(), load_model(QWEN), get_gpu(gpu), engine, entry_point)  # type: ignore[arg-type]
    assert (args.max_num_batched_tokens, args.max_num_seqs) == (tokens, seqs)


@pytest.mark.parametrize(
    ("engine", "times"), [("vllm", 2), ("vllm@0.19", 2), ("sglang", 1), ("tensorrt-llm", 1)]
)
def test_performance_mode_doubles_defaults_of_vllm_alone(engine: str, times: int) -> None:
    """Source: vLLM 0.32 `engine/arg_utils.py: _set_default_max_num_seqs_and_batched_tokens_args`."""
    model, gpu = load_model(QWEN), get_gpu("h100")
    plain, fast = (
        resolve(EngineArgs(performance_mode=mode), model, gpu, engine)  # type: ignore[arg-type]
        for mode in ("balanced", "throughput")
    )
    assert fast.max_num_batched_tokens == times * plain.max_num_batched_tokens
    assert fast.max_num_seqs == times * plain.max_num_seqs


def test_defaults_follow_the_version() -> None:
    """0.92 since CUDA graphs count (0.21); asynchronous since 0.14; V0 prefills a whole prompt at once."""
    model, gpu = load_model(QWEN), get_gpu("a10g")
    assert resolve(EngineArgs(), model, gpu, "vllm").gpu_memory_utilization == 0.92
    assert resolve(EngineArgs(), model, gpu, "vllm@0.20").gpu_memory_utilization == 0.92
    assert resolve(EngineArgs(), model, gpu, "vllm@0.19").gpu_memory_utilization == 0.9
    assert resolve(EngineArgs(), model, gpu, "vllm@0.13").async_scheduling is False
    assert resolve(EngineArgs(), model, gpu, "vllm@0.14").async_scheduling is True
    old = resolve(EngineArgs(max_model_len=20_000), model, gpu, "vllm@0.6")
    assert (old.enable_chunked_prefill, old.max_num_batched_tokens) == (False, 20_000)
    assert parse_engine("vllm@0.6").legacy


def test_graphs_count_from_0_20_on() -> None:
    """Before, they live outside the budget, and on ROCm always; eager engines have none.

    vLLM 0.19 has VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS = False in `envs.py`, 0.20 True.
    """
    assert estimate(QWEN, "h100", engine="vllm@0.19").budget.graphs.size.value == 0
    assert estimate(QWEN, "h100", engine="vllm@0.20").budget.graphs.size.value > 0
    assert estimate(QWEN, "mi300x").budget.graphs.size.value == 0
    assert estimate(QWEN, "h100", engine="vllm@0.21").budget.graphs.size.value > 0
    assert estimate(QWEN, "h100", EngineArgs(enforce_eager=True)).budget.graphs.size.value == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"tensor_parallel_size": 3}, "does not divide the model's 32 attention heads"),
        ({"gpu_memory_utilization": 1.4}, r"in \(0, 1\]"),
        ({"gpu_memory_utilization": 0.0}, r"in \(0, 1\]"),
        ({"gpu_memory_utilization": -0.5}, r"in \(0, 1\]"),
        ({"max_model_len": 10**6}, "is made for 40,960"),
        ({"max_model_len": 0}, "max-model-len 0"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 16}, "at least --max-num-seqs 16"),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 512}, "less than max_model_len"),
        ({"pipeline_parallel_size": 64}, "exceeds 36 layers"),
        ({"decode_context_parallel_size": 2}, "must divide tensor_parallel_size 1"),
        (
            {"decode_context_parallel_size": 2, "tensor_parallel_size": 8},
            "needs more tensor-parallel ranks than 8 KV heads",
        ),
        ({"kv_cache_dtype": "fp9"}, "did you mean"),
    ],
)
def test_refusals_of_the_engine(args: dict[str, object], words: str) -> None:
    with pytest.raises(KvplanError, match=words):
        estimate(QWEN, "h100", EngineArgs(**args))  # type: ignore[arg-type]


def test_a_config_without_a_length_takes_any() -> None:
    """vLLM assumes 2,048 where the config states no length, and takes what the user says."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 1000,
    }
    silent, stated = from_config(config), from_config(config | {"max_position_embeddings": 4096})
    assert estimate(silent, "l4").max_model_len == 2048
    assert estimate(silent, "l4", EngineArgs(max_model_len=32_768)).max_model_len == 32_768
    with pytest.raises(KvplanError, match="is made for 4,096"):
        estimate(stated, "l4", EngineArgs(max_model_len=32_768))


def test_bfloat16_needs_ampere() -> None:
    with pytest.raises(KvplanError, match="try float16"):
        estimate("Qwen/Qwen2.5-1.5B-Instruct", "t4", EngineArgs(dtype="bfloat16"))
    assert estimate("Qwen/Qwen2.5-1.5B-Instruct", "t4").fits


@pytest.mark.parametrize(
    ("gpu", "seqs", "drafts", "graphs"),
    [
        ("l40s", 256, 0, 51 + 35),
        ("h100", 1024, 0, 51 + 51),
        ("b200", 1024, 0, 83 + 83),
        ("h100", 1, 0, 2 + 1),
    ],
)
def test_number_of_cuda_graphs(gpu: str, seqs: int, drafts: int, graphs: int) -> None:
    """1, 2, 4, eights to 256, sixteens to 512 (1,024 on Blackwell), at most twice max_num_seqs; decodes once more."""
    card, model = get_gpu(gpu), load_model(QWEN)
    args = resolve(EngineArgs(max_num_seqs=seqs, num_speculative_tokens=drafts), model, card)
    assert engine_graphs(model, args, card, EngineVersion()).num_captured == graphs


# Answers


def test_the_fifth_of_a_card_that_weights_exceed() -> None:
    """70B in 16 bits does not fit 80 GB: an answer, with needed and available, not an exception."""
    plan = estimate("meta-llama/Llama-3.1-70B", "h100")
    assert not plan.fits
    assert plan.limited_by is Limit.WEIGHTS
    assert plan.refusal is not None
    assert plan.refusal.needed_bytes > 131 * GiB > plan.refusal.available_bytes
    with pytest.raises(DoesNotFit, match="no memory left for KV"):
        plan.check()


def test_auto_length_is_the_longest_that_fits() -> None:
    """-1 settles on a length that starts; one block more is refused."""
    plan = estimate(QWEN, "rtx-4090", EngineArgs(max_model_len=-1))
    assert plan.fits
    assert plan.max_model_len < load_model(QWEN).max_model_len
    longer = estimate(QWEN, "rtx-4090", EngineArgs(max_model_len=plan.max_model_len + 16))
    assert longer.refusal is not None
    assert longer.refusal.max_model_len == plan.max_model_len


def test_max_num_seqs_can_be_the_limit() -> None:
    plan = estimate(
        QWEN, "h100", EngineArgs(max_num_seqs=4), demand=Demand(input_len=100, output_len=100, num_samples=8)
    )
    assert not plan.fits
    assert plan.limited_by is Limit.MAX_NUM_SEQS
    assert what_would_fit(plan)[0].change == "--max-num-seqs 8"


def test_a_stated_pool_gives_its_own_figures() -> None:
    """KV figures come from --kv-cache-memory-bytes, even where the card cannot hold the rest."""
    args = EngineArgs(kv_cache_memory_bytes=70 * GiB)
    plan = estimate(QWEN, "h100", args)
    assert plan.layout is not None
    assert plan.layout.num_blocks == 70 * GiB // (147_456 * 16)
    assert plan.limited_by is Limit.WEIGHTS
    assert not plan.fits


def test_doubt_is_told() -> None:
    """Ranges carry through: what holds only at the middle of the overheads' range says so."""
    plan = estimate(QWEN, "h100", demand=Demand(input_len=512, output_len=16384))
    assert plan.traces.low < plan.traces.value <= plan.traces.high
    asked = Demand(input_len=512, output_len=16384, num_requests=int(plan.traces.value))
    edge = estimate(QWEN, "h100", demand=asked)
    assert edge.fits
    assert not edge.fits_for_sure
    assert "worst end" in str(edge)
    assert plan.fits_for_sure
    assert "worst end" not in str(plan)


def test_replicas_hold_their_own_traces() -> None:
    demand = Demand(input_len=512, output_len=8192, num_requests=10)
    one = estimate(QWEN, "h100", demand=demand)
    two = estimate(QWEN, "h100", EngineArgs(data_parallel_size=2), demand=demand)
    assert two.traces.value == 2 * one.traces.value
    assert two.cache_tokens == one.cache_tokens


def test_colocated_models_take_their_share() -> None:
    """PPO keeps four models on the card, GRPO two: the KV pool pays for each, weights and KV."""
    plain = estimate(QWEN, "h200")
    grpo = estimate(QWEN, "h200", colocate={"reference": QWEN})
    ppo = estimate(QWEN, "h200", colocate={"reference": QWEN, "reward": QWEN, "critic": QWEN})
    share = plain.budget.kv.size.value - grpo.budget.kv.size.value
    assert share > plain.budget.weights.size.value
    assert plain.budget.kv.size.value - ppo.budget.kv.size.value == 3 * share
    assert sum(row.size.value for row in ppo.budget.rows) == ppo.budget.total.size.value


def test_a_draft_model_shares_the_pool() -> None:
    """Its weights are a row, its KV is laid out with the main model's."""
    args = EngineArgs(num_speculative_tokens=3, speculative_method="draft_model")
    plan = estimate(QWEN, "h100", args, colocate={"draft": "Qwen/Qwen3-0.6B"})
    assert plan.shape.bytes_per_block > estimate(QWEN, "h100").shape.bytes_per_block
    with pytest.raises(KvplanError, match="num-speculative-tokens"):
        estimate(QWEN, "h100", colocate={"draft": "Qwen/Qwen3-0.6B"})
    with pytest.raises(KvplanError, match="roles are"):
        estimate(QWEN, "h100", colocate={"judge": QWEN})
    assert Colocated("draft", "x", 1, 0).kv_bytes == 0


# What would fit


@pytest.mark.parametrize(
    ("model", "gpu", "demand"),
    [
        (QWEN, "h100", Demand(input_len=512, output_len=16384, num_samples=32)),
        ("meta-llama/Llama-3.1-70B", "h100", Demand()),
        (QWEN, "rtx-4090", Demand()),
        (QWEN, "rtx-4090", Demand(input_len=1000, output_len=3000, num_requests=40)),
    ],
)
def test_every_option_fits_by_the_forward_formula(model: str, gpu: str, demand: Demand) -> None:
    """Options are answers of `answer` to changed questions, ranked, and one step further does not fit."""
    plan = estimate(model, gpu, demand=demand)
    options = what_would_fit(plan)
    assert options
    for option in options:
        assert answer(option.plan.question).fits, option.change
    assert [o.rank for o in options] == sorted(o.rank for o in options)
    shorter = [o for o in options if o.change.startswith("--output-len")]
    for option in shorter:
        longer = option.plan.question.demand.model_copy(
            update={"output_len": int(option.change.split()[1]) + 1}
        )
        assert not estimate(model, gpu, demand=longer).fits


def test_notebooks_get_a_frame_and_a_table() -> None:
    pytest.importorskip("pandas")
    plan = estimate(QWEN, "h100")
    frame = plan.to_frame()
    assert frame.set_index("use").loc["weights", "gib"] == plan.budget.weights.size.value / GiB
    html = plan._repr_html_()
    assert "GPU KV cache size" in html
    assert html.count("<tr>") == html.count("</tr>") >= 6
    assert f"<td>weights</td><td>{plan.budget.weights.size.value / GiB:.2f}</td>" in html
    assert str(plan).startswith("Memory per GPU")


@pytest.mark.parametrize(
    ("model", "word"), [(QWEN, "fits"), ("meta-llama/Llama-3.1-70B", "Does not start: no memory left for KV")]
)
def test_a_plan_is_shown_in_a_few_lines(model: str, word: str) -> None:
    """At a prompt: what was asked and the headline, not the dataclass."""
    lines = repr(estimate(model, "h100")).splitlines()
    assert lines[0].startswith(f"<Plan of {model} on 1 x h100-sxm, vllm@0.32: ")
    assert len(lines) <= 5
    assert word in " ".join(lines)


def test_what_fits_has_no_options() -> None:
    assert what_would_fit(estimate(QWEN, "h100")) == ()


# Other engines


def test_sglang_default_fraction_equals_sglang() -> None:
    """mem_fraction_static of SGLang 0.5.23 itself, for every GPU size, split, attention kind, chunk and graph."""
    file = TRUTH / "sglang" / "mem_fraction.json"
    if not file.is_file():
        pytest.skip(f"reference data is not at {file}")
    cases = json.loads(file.read_text())
    assert len(cases) > 160
    for case in cases:
        got = mem_fraction_static(
            case["mem_mib"],
            case["tp"],
            case["pp"],
            mla=case["mla"],
            chunk=case["chunk"],
            max_running_requests=case["max_running_requests"],
            prefill_graph=case["prefill_graph"],
        )
        assert got == case["mem_fraction_static"], case
        assert (case["chunk"] or defaults(case["mem_mib"]).chunked_prefill_size) == case[
            "chunked_prefill_size"
        ]


def test_sglang_pool_leaves_activations_to_the_reserve() -> None:
    """Pool = free after weights - (1 - fraction) x free before; nothing else is taken off."""
    args = EngineArgs(gpu_memory_utilization=0.85)
    budget = estimate(QWEN, "h100", args, engine="sglang").budget
    before = budget.total.size.value - budget.runtime.size.value
    after = before - budget.weights.size.value
    assert budget.kv.size.value == pytest.approx(after - before * 0.15, abs=2)


@pytest.mark.parametrize(
    ("engine", "line"),
    [
        ("vllm", "GPU KV cache size: "),
        ("sglang", "max_total_num_tokens="),
        ("tensorrt-llm", "for max tokens in paged KV cache ("),
    ],
)
def test_each_engine_is_quoted_in_its_own_words(engine: str, line: str) -> None:
    assert line in str(estimate(QWEN, "h100", engine=engine))


@pytest.mark.parametrize(
    ("engine", "gpu", "words"),
    [
        ("sglang", "h100", "Falls short: "),
        ("vllm", "h100", "Does not start: "),
        ("sglang", "rtx-4090", "Does not start: "),
    ],
)
def test_a_pool_too_small_for_the_longest_request(engine: str, gpu: str, words: str) -> None:
    """vLLM refuses to start; SGLang starts with what there is, if there is anything."""
    assert words in str(estimate("Qwen/Qwen3-32B", gpu, engine=engine))


def test_sglang_buys_windows_with_full_tokens() -> None:
    """gpt-oss: half its layers slide, in a pool of 0.8 tokens for each full one: 1.8 / 2 of the bytes."""
    two = estimate("openai/gpt-oss-20b", "h100", engine="sglang").shape
    one = estimate("openai/gpt-oss-20b", "h100", engine="sglang@0.4").shape
    assert two.bytes_per_block / one.bytes_per_block == pytest.approx(0.9, rel=1e-4)


def test_sglang_takes_states_off_first() -> None:
    """A hybrid's states take 0.9 / 1.9 of the pool, and three slots a request bound how many run."""
    plan = estimate(
        "Qwen/Qwen3-Next-80B-A3B-Instruct", "h100", EngineArgs(tensor_parallel_size=4), engine="sglang"
    )
    assert plan.layout is not None
    kv = plan.layout.num_blocks * plan.layout.bytes_per_block
    assert kv / plan.budget.kv.size.value == pytest.approx(1 / 1.9, rel=0.01)
    assert plan.args.max_num_seqs < 2048


def test_tensorrt_refuses_windows_by_name() -> None:
    with pytest.raises(KvplanError, match="pools of their own"):
        estimate("openai/gpt-oss-20b", "h100", engine="tensorrt-llm")


def test_stated_tokens_bound_the_pool_of_other_engines() -> None:
    """--max-total-tokens: the smaller of the asked and the profiled pool."""
    args = EngineArgs(num_gpu_blocks_override=50_000, max_model_len=8192)
    assert estimate(QWEN, "h100", args, engine="sglang").cache_tokens.value == 50_000
    endless = EngineArgs(num_gpu_blocks_override=10**9, max_model_len=8192)
    assert estimate(QWEN, "h100", endless, engine="sglang").cache_tokens.value < 10**6


# Serve command


def test_serve_command_names_only_what_differs() -> None:
    args = EngineArgs(tensor_parallel_size=2, enable_prefix_caching=False, num_speculative_tokens=3)
    assert serve_flags(EngineArgs()) == {}
    line = shell_command(QWEN, args)
    assert line.startswith(f"vllm serve {QWEN} --tensor-parallel-size 2 --no-enable-prefix-caching")
    assert """'{"method": "mtp", "num_speculative_tokens": 3}'""" in line
    assert "tensor-parallel-size: 2" in yaml_config(QWEN, args)
    assert shell_command(QWEN, EngineArgs(max_model_len=8192), "sglang").endswith("--context-length 8192")


@pytest.mark.parametrize(("engine", "page"), [("sglang", 1), ("sglang", 64), ("tensorrt-llm", 32)])
@pytest.mark.parametrize("length", [1000, 16_896, 29_999])
def test_other_engines_print_the_tokens_of_their_pages(engine: str, page: int, length: int) -> None:
    """`max_total_num_tokens` and `max tokens in paged KV cache` are whole pages, whatever the context is."""
    args = EngineArgs(max_model_len=length, block_size=page)
    plan = estimate(QWEN, "h100", args, engine=engine)
    asked = estimate(QWEN, "h100", EngineArgs(max_model_len=4096, block_size=page), engine=engine)
    assert plan.cache_tokens.value == plan.shape.num_blocks * page == asked.cache_tokens.value
    assert plan.budget.kv.size.value // plan.bytes_per_token - plan.cache_tokens.value in range(page)


def test_serve_command_speaks_sglang_and_tensorrt() -> None:
    """Switches that turn off what vLLM's turn on, tokens for blocks, and a file for what has no flag."""
    args = EngineArgs(
        tensor_parallel_size=2,
        max_num_seqs=64,
        enforce_eager=True,
        enable_prefix_caching=False,
        async_scheduling=True,
        num_gpu_blocks_override=100,
        kv_cache_dtype="fp8",
        watermark=0.01,
    )
    line = shell_command(QWEN, args, "sglang")
    assert line.startswith(f"python -m sglang.launch_server --model-path {QWEN} --tp-size 2")
    words = line.split()
    assert {"--disable-cuda-graph", "--disable-radix-cache", "--max-total-tokens", "fp8_e4m3"} <= set(words)
    assert "--disable-overlap-schedule" not in words
    assert unspoken(args, "sglang") == ["--watermark"]
    trt = shell_command(QWEN, args, "tensorrt-llm")
    assert "--tp_size 2 --max_batch_size 64 --extra_llm_api_options trtllm-options.yaml" in trt
    file = yaml.safe_load(yaml_config(QWEN, args, "tensorrt-llm"))
    assert file == {
        "kv_cache_config": {"max_tokens": 3200, "dtype": "fp8", "enable_block_reuse": False},
        "disable_overlap_scheduler": False,
        "cuda_graph_config": None,
    }
    assert yaml.safe_load(yaml_config(QWEN, args, "sglang"))["model-path"] == QWEN


SPOKEN: dict[str, Any] = {
    "enable_prompt_embeds": True,
    "env": "VLLM_USE_V2_MODEL_RUNNER=0",
    "disable_sliding_window": True,
    "enable_expert_parallel": True,
    "max_num_batched_tokens": 4096,
    "gpu_memory_utilization": 0.85,
    "kv_cache_dtype": "fp8_e4m3",
    "kv_cache_dtype_skip_layers": ("0", "sliding_window"),
    "attention_backend": "FLASHINFER",
    "enable_prefix_caching": False,
    "performance_mode": "throughput",
    "enable_chunked_prefill": False,
    "async_scheduling": False,
    "scheduling_policy": "priority",
    "scheduler_reserve_full_isl": False,
    "long_prefill_token_threshold_adaptive": True,
    "enable_mamba_shared_prefix_checkpoint": True,
    "watermark": 0.25,
    "kv_offloading_backend": "lmcache",
    "kv_transfer_config": '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}',
    "offload_backend": "uva",
    "cpu_offload_params": ("experts",),
    "offload_params": ("experts",),
    "disable_hybrid_kv_cache_manager": True,
    "swa_bounded_replay": False,
    "kv_sharing_fast_prefill": True,
    "enable_hc_sp": True,
    "mamba_cache_dtype": "float32",
    "mamba_ssm_cache_dtype": "float16",
    "mamba_cache_mode": "align",
    "speculative_method": "eagle",
    "speculative_config": '{"draft_sample_method": "probabilistic"}',
    "quantization": "fp8",
    "quantization_config": '{"linear": "fp8_per_block"}',
    "dtype": "float16",
    "model_impl": "transformers",
    "enforce_eager": True,
    "optimization_level": 1,
    "all2all_backend": "deepep_low_latency",
    "enable_dbo": True,
    "disable_custom_all_reduce": True,
    "dcp_comm_backend": "a2a",
    "attention_config": '{"flash_attn_version": 2}',
    "kernel_config": '{"moe_backend": "triton"}',
    "moe_backend": "triton",
    "linear_backend": "marlin",
    "mamba_backend": "flashinfer",
    "mamba_ssu_algorithm": "simple",
    "gdn_prefill_backend": "triton",
    "kda_prefill_backend": "triton",
    "kda_decode_backend": "triton",
    "sparse_indexer_topk_backend": "torch",
    "use_fp64_gumbel": True,
    "return_sampling_mask": True,
    "watermark_config": '{"key": 7}',
    "ir_op_priority": '{"rms_norm": ["native"]}',
    "disable_nccl_for_dp_synchronization": False,
    "enable_elastic_ep": True,
    "data_parallel_backend": "ray",
    **dict.fromkeys(
        (
            "data_parallel_hybrid_lb",
            "data_parallel_external_lb",
            "data_parallel_multi_port_external_lb",
            "headless",
        ),
        True,
    ),
    "runner": "pooling",
    "convert": "embed",
    "pooler_config": '{"pooling_type": "MEAN"}',
    "compilation_config": '{"cudagraph_mode": "PIECEWISE"}',
    "cudagraph_capture_sizes": (1, 2, 4),
    "specialize_active_lora": True,
    "generation_config": "vllm",
    "override_generation_config": '{"top_k": 20}',
    "language_model_only": True,
    "limit_mm_per_prompt": '{"video": 0}',
    "mm_processor_kwargs": '{"max_pixels": 1003520}',
    "media_io_kwargs": '{"video": {"num_frames": 8}}',
    "skip_mm_profiling": True,
    "mm_encoder_tp_mode": "data",
    "mm_encoder_attn_backend": "TORCH_SDPA",
    "mm_encoder_attn_dtype": "fp8",
    "mm_encoder_only": True,
    "mm_processor_device": "cuda",
    "ec_transfer_config": '{"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}',
    "enable_lora": True,
    "fully_sharded_loras": True,
    "lora_dtype": "float16",
    "lora_target_modules": ("o_proj",),
    "enable_moe_shared_loras": True,
    "enable_mixed_moe_lora_format": True,
    "enable_tower_connector_lora": True,
    "enable_eplb": True,
    "eplb_config": '{"num_redundant_experts": 2}',
    "dcp_q_replicate": True,
    "enable_batch_sharded_sampling": True,
    "enable_return_routed_experts": True,
    "use_replayssm": True,
    "engram_config": '{"cpu_offload": false}',
}
"""A value other than the default of every flag; 8 where none is named."""


@pytest.mark.parametrize("engine", WORDS)
@pytest.mark.parametrize("field", EngineArgs.model_fields)
def test_every_flag_that_is_spoken_is_understood(field: str, engine: str) -> None:
    """Written to a command line (or TensorRT-LLM's file) and read back, a flag is what it was."""
    beside = {"tensor_parallel_size": 4} if field == "enable_expert_parallel" else {}
    beside |= {"num_speculative_tokens": 3} if field.startswith("speculative_") else {}
    asked = {**beside, field: SPOKEN.get(field, 8)}
    args = EngineArgs(**asked)
    missing = unspoken(args, engine)
    assert missing == [] or missing[-1] == "--" + field.replace("_", "-")
    if missing:
        return
    assert understand(spell(args, engine) | spell(args, engine, in_file=True), engine) == asked
    if engine != "tensorrt-llm" or not spell(args, engine, in_file=True):
        assert EngineArgs(**read_flags(shell_command(QWEN, args, engine), engine)) == args  # type: ignore[arg-type]


def test_words_that_say_nothing_new_are_left_out() -> None:
    """SGLang's switches turn off what is on; TensorRT-LLM's file names a pool in tokens."""
    on = EngineArgs(enable_prefix_caching=True, async_scheduling=True, enable_chunked_prefill=True)
    assert spell(on, "sglang") == {}
    assert unspoken(on, "sglang") == []
    pool = EngineArgs(num_gpu_blocks_override=100, block_size=64)
    assert spell(pool, "tensorrt-llm", in_file=True)["kv_cache_config.max_tokens"] == 6400
    assert understand(
        {"max_total_tokens": "many", "ep_size": None, "chunked_prefill_size": -1}, "sglang"
    ) == {"enable_chunked_prefill": False}


# vLLM's own planner


def test_plans_equal_the_engines_planner() -> None:
    """Blocks, tokens, concurrency and refusals of vLLM 0.32's planner, from the plan of the same flags."""
    folder = TRUTH / "layout"
    if not folder.is_dir():
        pytest.skip(f"reference data is not at {folder}")
    rows = [json.loads(line) for line in (folder / "layout_golden.jsonl").read_text().splitlines()]
    planned = [row for row in rows if _is_planned(row)]
    assert len(planned) > 60
    assert [
        row["case"]["id"] for row in planned if not _equals_planner(folder, row["case"], row["result"])
    ] == []


def _is_planned(row: dict[str, dict[str, object]]) -> bool:
    """Cases of a model and one pool size, on cards whose batch defaults the reference shares."""
    case = row["case"]
    return (
        "config" in case
        and "available_gib" in case
        and case.get("device") != "B200"
        and "resolved" in row["result"]
    )


def _equals_planner(folder: Path, case: dict[str, Any], result: dict[str, Any]) -> bool:
    config = json.loads((folder / case["config"]).read_text()) | case.get("config_update", {})
    flags = {SPELLED.get(key, key): value for key, value in case.items()}
    args = EngineArgs(
        kv_cache_memory_bytes=int(case["available_gib"] * GiB),
        **{key: value for key, value in flags.items() if key in EngineArgs.model_fields},
    )
    plan = estimate(from_config(config), case.get("device", "h100"), args)
    if plan.layout is None:
        return plan.refusal is not None and plan.refusal.max_model_len == result["estimated_max_model_len"]
    got = (plan.layout.num_blocks, plan.cache_tokens.value, plan.max_concurrency.value)
    return got == (result["num_blocks"], result["kv_cache_size_tokens"], result["max_concurrency"])


SPELLED = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dcp": "decode_context_parallel_size",
}


def test_traces_longer_than_the_context_are_never_served() -> None:
    """An answer, not an error; a longer context is offered where the model has one."""
    demand = Demand(input_len=500, output_len=10_000)
    plan = estimate(QWEN, "h100", EngineArgs(max_model_len=8192), demand=demand)
    assert not plan.fits
    assert plan.too_long
    assert what_would_fit(plan)[0].change == "--max-model-len 10500"
    with pytest.raises(DoesNotFit, match="exceeds max_model_len"):
        plan.check()
    endless = estimate(QWEN, "h100", demand=Demand(output_len=10**6))
    assert not endless.fits
    assert "--max-model-len" not in str(endless)


# Anything goes in

FLAGS = st.fixed_dictionaries(
    {},
    optional={
        "tensor_parallel_size": st.sampled_from([1, 2, 3, 8]),
        "pipeline_parallel_size": st.sampled_from([1, 2, 3]),
        "data_parallel_size": st.sampled_from([1, 2]),
        "max_model_len": st.sampled_from([-1, 0, 1, 4096, 1 << 20]),
        "max_num_seqs": st.integers(1, 5000),
        "max_num_batched_tokens": st.integers(1, 200_000),
        "gpu_memory_utilization": st.floats(-0.5, 1.5),
        "kv_cache_memory_bytes": st.integers(1, 1 << 38),
        "num_gpu_blocks_override": st.integers(1, 10**6),
        "block_size": st.sampled_from([1, 16, 64, 256]),
        "kv_cache_dtype": st.sampled_from(["auto", "fp8", "nvfp4", "int8_per_token_head", "fp8_ds_mla"]),
        "num_speculative_tokens": st.integers(0, 8),
        "enable_prefix_caching": st.booleans(),
        "enforce_eager": st.booleans(),
    },
)


@pytest.mark.parametrize("model", MODELS)
@settings(max_examples=15, deadline=None)
@given(
    flags=FLAGS,
    gpu=st.sampled_from(["t4", "rtx-4090", "h100", "b300"]),
    engine=st.sampled_from(["vllm", "vllm@0.6", "vllm@0.19", "sglang", "tensorrt-llm"]),
    output_len=st.sampled_from([None, 1, 30_000, 10**7]),
)
def test_any_flags_give_an_answer_or_a_named_error(
    model: str, flags: dict[str, Any], gpu: str, engine: str, output_len: int | None
) -> None:
    """Never a traceback: a plan whose rows add up and whose document is valid JSON, or one line that says why not."""
    demand = Demand(input_len=100, output_len=output_len, num_samples=4) if output_len else Demand()
    try:
        plan = estimate(load_model(model), gpu, EngineArgs(**flags), engine=engine, demand=demand)
    except KvplanError as error:
        said = str(error)
    else:
        said = ""
        json.dumps(plan.to_dict(), allow_nan=False)
        assert sum(row.size.value for row in plan.budget.rows) == plan.budget.total.size.value
        assert str(plan)
    assert "\n" not in said


def test_stated_blocks_are_taken_from_the_card() -> None:
    """vLLM allocates them whatever is left: what the card does not have does not fit."""
    few = estimate(QWEN, "h100", num_gpu_blocks_override=20_000)
    block = few.layout.bytes_per_block  # type: ignore[union-attr]
    assert few.budget.kv.size.value == 20_000 * block
    assert few.fits
    many = estimate(QWEN, "h100", num_gpu_blocks_override=100_000)
    assert not many.serves
    assert "the asked KV pool need" in many.reason
