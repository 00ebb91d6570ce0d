"""The KV layout against vLLM's own planner, and the laws it must obey.

`fixtures/layout_golden.json.gz` holds what vLLM 0.32.0's planner answered on a CPU: 80 chosen cases, 24 of real
start-up logs, and several hundred drawn at random over models, cards, parallel sizes, KV dtypes and flags.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from places import FIXTURES, TRUTH
from validation import section

from kvplan.engines.flags import EngineArgs
from kvplan.formulas.capacity import kv_bytes_per_token, latent_bytes_per_token
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.forward import estimate
from kvplan.memory.kv.backends import BACKENDS, KV_DTYPES
from kvplan.memory.kv.groups import Layer, Page, bytes_per_block, group_layers
from kvplan.memory.kv.pages import Pages
from kvplan.memory.kv.versions import MIRRORED
from kvplan.memory.layout import KvCacheTooSmall, Layout, kv_layout, pages_layout
from kvplan.models.load import from_config, load_model
from kvplan.models.quantization import checkpoint_kv_dtype
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, MlpSpec, ModelSpec

GOLDEN = json.loads(gzip.decompress((FIXTURES / "layout_golden.json.gz").read_bytes()))
TRUTH = TRUTH / "layout"
CARDS = {"H100": (9, 0), "A100": (8, 0), "B200": (10, 0), "L40S": (8, 9)}
Case = dict[str, Any]


@cache
def model_of(name: str, update: str = "{}") -> ModelSpec:
    return from_config({**GOLDEN["configs"][name], **json.loads(update)}, name)


def args_of(case: Case) -> EngineArgs:
    """The case's flags; the harness that made it had these defaults."""
    renamed = {
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "dcp": "decode_context_parallel_size",
    }
    renamed["spec_method"] = "speculative_method"
    known = set(EngineArgs.model_fields)
    flags = {renamed.get(k, k): v for k, v in case.items()}
    defaults = {"max_model_len": 32_768, "max_num_batched_tokens": 8_192}
    flags = {**defaults, "async_scheduling": True, "enable_prefix_caching": True, **flags}
    return EngineArgs(**{k: v for k, v in flags.items() if k in known})


def pages_of(case: Case) -> Pages:
    """A list of layers given by hand."""
    kinds = {k.value: k for k in AttentionKind} | {"mamba": AttentionKind.STATE}
    layers = []
    for spec in case["specs"]:
        shape = (spec.get("kv_heads", 1), spec.get("head_size", 0))
        if spec["kind"] == "mamba":
            page = Page(AttentionKind.STATE, case["max_model_len"], state_bytes=spec["state_bytes"])
        else:
            window = spec.get("window") or spec.get("chunk") or 0
            page = Page(kinds[spec["kind"]], 16, 4 * shape[0] * shape[1], window=window, shape=shape)
        layers += [Layer(0, page)] * spec["n"]
    return Pages(tuple(layers), 16, "auto", ())


def layout_of(case: Case, version: tuple[int, int] = MIRRORED) -> Layout:
    available = case.get("available_bytes") or int(case["available_gib"] * GiB)
    if "specs" in case:
        return pages_layout(
            pages_of(case), args_of(case), available, longest=case["max_model_len"], version=version
        )
    model = model_of(case["config"], json.dumps(case.get("config_update", {})))
    card = CARDS[case.get("device", "H100")]
    return kv_layout(model, args_of(case), available, capability=card, version=version)


def answer(case: Case, version: tuple[int, int] = MIRRORED) -> Case:
    """What kvplan says, in the golden's words."""
    try:
        found = layout_of(case, version)
    except KvCacheTooSmall as small:
        return {"refused": small.max_model_len}
    except KvplanError:
        return {"refused": 0}
    groups = [[g.num_layers, g.block_size, g.page_bytes, g.blocks_per_request] for g in found.groups]
    said = {
        "blocks": found.num_blocks,
        "tokens": found.kv_cache_size_tokens,
        "concurrency": found.max_concurrency,
    }
    said |= {"length": found.max_model_len, "groups": groups}
    return said | ({"block_bytes": found.bytes_per_block} if case.get("pp", 1) == 1 else {})


def comparable(case: Case, said: Case) -> Case:
    """Refusals compare by the length that would fit; under -1 the harness counted blocks before it settled one."""
    if "error" in said or "refused" in said:
        return {"refused": said.get("refused", 0)}
    if case.get("max_model_len") == -1:
        return said | {"groups": [group[:3] for group in said["groups"]]}
    return {k: v for k, v in said.items() if k != "says"}


def cases(origin: str) -> list[tuple[Case, Case]]:
    return [(case, golden) for kind, case, golden in GOLDEN["cases"] if kind == origin]


@cache
def cases_of_033() -> list[tuple[Case, Case]]:
    """What 0.33's planner said, as for 0.32."""
    packed = (FIXTURES / "layout_golden_0.33.json.gz").read_bytes()
    found: list[tuple[Case, Case]] = json.loads(gzip.decompress(packed))
    return found


@pytest.mark.parametrize(("case", "golden"), cases("chosen") + cases("logs"), ids=lambda x: x.get("id", ""))
def test_equals_vllm(case: Case, golden: Case) -> None:
    """Groups, blocks, tokens and concurrency, or the refusal and the length that would fit: all equal."""
    assert comparable(case, answer(case)) == comparable(case, golden)


def test_equals_vllm_on_random_cases() -> None:
    """So it is for combinations that nobody chose, refusals included."""
    wrong = {}
    for case, golden in cases("random"):
        ours, theirs = comparable(case, answer(case)), comparable(case, golden)
        if ours != theirs:
            wrong[case["id"]] = (case, ours, theirs)
    assert not wrong, next(iter(wrong.values()))
    assert len(cases("random")) >= 400


def test_the_whole_reference_set_agrees() -> None:
    """The reference folder, where it is there, holds no case that the fixture does not."""
    if not TRUTH.is_dir():
        pytest.skip("reference data ../shared/truth/layout is not there")
    ids = {case["id"] for _, case, _ in GOLDEN["cases"]}
    for name in ("layout_cases.jsonl", "layout_log_cases.jsonl"):
        assert {json.loads(line)["id"] for line in (TRUTH / name).read_text().splitlines()} <= ids


def _row(case: Case, golden: Case) -> str:
    flags = [
        f"{k}={v}"
        for k, v in case.items()
        if k not in ("id", "config", "config_update", "specs", "available_gib")
    ]
    what = case.get("config") or f"{len(case['specs'])} kinds of layers by hand"
    ours, theirs = comparable(case, answer(case)), comparable(case, golden)
    if "refused" in theirs:
        said = f"refused, {theirs['refused']:,} fit" if theirs["refused"] else "refused"
    else:
        said = f"{len(theirs['groups'])} groups, {theirs['blocks']:,} blocks, {theirs['tokens']:,} tokens"
        said += f", {theirs['concurrency']:.2f}x"
    return f"| {what} | {', '.join(flags)} | {said} | {'equal' if ours == theirs else f'kvplan: {ours}'} |"


def test_the_table_of_the_docs_is_this_one() -> None:
    """docs/validation.md shows every chosen case, and the score of the others."""
    listed = cases("chosen") + cases("logs")
    scores = Counter(comparable(c, answer(c)) == comparable(c, g) for c, g in cases("random"))
    rows = "\n".join(_row(case, golden) for case, golden in listed)
    section(
        "layout",
        f"""## KV layout against vLLM's own planner

vLLM 0.32.0's planner runs on a CPU; these are its answers and kvplan's. Equal means equal: groups, block sizes,
page bytes, blocks a request, pool blocks, printed tokens and concurrency, or the refusal and its longest length.
Besides the {len(listed)} below, {scores[True]} of {scores.total()} further cases are equal, drawn at
random over models, cards, parallel sizes, KV dtypes and flags, or made to stress one of them.
{len(cases_of_033())} random cases of vLLM 0.33.0's planner are equal as well.

Assumed as in the reference: FlashInfer, DeepGEMM and FlashMLA installed, FlashAttention 4 not. Not planned:
encoder-decoder models, DeepSeek V4, KV connectors, ReplaySSM, image inputs (Gemma 3 and 4 then pick other kernels).
Not compared: drafting layers under pipeline parallelism, which the reference puts on every stage and the engine on
the last one; stages without any attention layer, whose sizes the reference takes from the stage before.

| model | flags | vLLM | kvplan |
|---|---|---|---|
{rows}""",
    )


# Laws, on layouts of made-up models


def dense(num_layers: int = 36, window_every: int = 0, kv_heads: int = 8) -> ModelSpec:
    full = AttentionSpec(
        AttentionKind.FULL, num_heads=32, num_kv_heads=kv_heads, head_dim=128, v_head_dim=128
    )
    local = replace(full, kind=AttentionKind.SLIDING, window=1024)
    kinds = [local if window_every and i % window_every else full for i in range(num_layers)]
    layers = tuple(LayerSpec(kind, MlpSpec(1)) for kind in kinds)
    return ModelSpec("dense", "Qwen3ForCausalLM", layers, 4096, 150_000, 40_960, "bfloat16", False)


def flags(**given: Any) -> EngineArgs:
    return args_of(given)


BLOCK = 2 * 8 * 128 * 2 * 16 * 36


def test_the_null_block_is_kept_back() -> None:
    """Exactly one request plus the null block fits; a byte less is refused with the next shorter length."""
    assert kv_layout(dense(), flags(), BLOCK * 2049).num_blocks == 2049
    with pytest.raises(KvCacheTooSmall) as refused:
        kv_layout(dense(), flags(), BLOCK * 2049 - 1)
    assert refused.value.max_model_len == 32_752
    assert (refused.value.needed_bytes, refused.value.available_bytes) == (BLOCK * 2048, BLOCK * 2048 - 1)


def test_the_length_that_a_refusal_names_fits() -> None:
    """Asking for the refusal's own length succeeds, one token more does not."""
    small = 3 * GiB
    model = dense(40, window_every=5)
    with pytest.raises(KvCacheTooSmall) as refused:
        kv_layout(model, flags(), small)
    longest = refused.value.max_model_len
    assert kv_layout(model, flags(max_model_len=longest), small).max_model_len == longest
    with pytest.raises(KvCacheTooSmall):
        kv_layout(model, flags(max_model_len=longest + 1), small)
    assert kv_layout(model, flags(max_model_len=-1), small).max_model_len == longest


@given(st.integers(1, 64), st.integers(0, 6), st.sampled_from([1, 2, 4, 8, 16, 32]), st.integers(1, 4))
def test_blocks_hold_every_layer(num_layers: int, every: int, tp: int, pp: int) -> None:
    """Every layer is in one group, no group outweighs a block, and the pool is within the memory."""
    if pp > num_layers:
        return
    args = flags(tp=tp, pp=pp, max_model_len=2_000, max_num_batched_tokens=2_048)
    found = kv_layout(dense(num_layers, every), args, 20 * GiB)
    assert sum(group.num_layers for group in found.groups) == num_layers
    assert found.num_blocks * found.bytes_per_block <= 20 * GiB
    if pp == 1:
        assert max(group.bytes_per_block for group in found.groups) == found.bytes_per_block
    assert found.blocks_per_request <= found.num_usable_blocks


@given(st.integers(1, 200_000))
def test_resident_blocks_never_exceed_the_reservation(num_tokens: int) -> None:
    """What decoding holds is at most what start-up reserved for that length, and grows with the length."""
    found = kv_layout(dense(40, window_every=5), flags(max_model_len=200_000), 200 * GiB)
    held = found.resident_blocks([num_tokens, 200_000])
    assert held[0] <= found.blocks_per_request
    full = found.groups[0]
    assert full.resident_blocks(num_tokens) == -(-num_tokens // 16)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([0, 128, 512]), st.integers(1, 8)),
        min_size=1,
        max_size=3,
    )
)
def test_groups_partition_layers_of_one_page_size(kinds: list[tuple[int, int, int]]) -> None:
    """Any mix of windows and heads: all layers dealt, and groups that share a pool have one page size."""
    layers = []
    for n, window, heads in kinds:
        kind = AttentionKind.SLIDING if window else AttentionKind.FULL
        layers += [Layer(0, Page(kind, 16, 256 * heads, window=window, shape=(heads,)))] * n
    groups = group_layers(layers)
    assert sum(map(len, groups)) == len(layers)
    if len(groups) > 1:
        assert len({layer.page.num_bytes for group in groups for layer in group}) == 1
    assert bytes_per_block(groups) >= max(layer.page.num_bytes for layer in layers)


@pytest.mark.parametrize("tp", [1, 2, 8, 16])
def test_textbook_formula_and_layout_agree(tp: int) -> None:
    """A dense model's block is the formula's bytes a token times 16; a latent's likewise."""
    found = kv_layout(dense(), flags(tp=tp), 40 * GiB)
    assert found.bytes_per_block == 16 * kv_bytes_per_token(36, 8, 128, tp=tp)
    latent = kv_layout(model_of("deepseek-r1"), flags(tp=tp), 40 * GiB)
    assert latent.bytes_per_block == 16 * latent_bytes_per_token(61, 512, 64)


def test_a_decoding_state_holds_less_than_start_up_reserves() -> None:
    """Qwen3-Next with two drafts: 2 + 2 blocks of state reserved per group, 1 + 2 held while decoding."""
    found = kv_layout(model_of("qwen3-next-80b-a3b"), flags(tp=4, num_speculative_tokens=2), 20 * GiB)
    states = [group for group in found.groups if group.kind is AttentionKind.STATE]
    assert {group.blocks_per_request for group in states} == {4}
    assert {int(group.resident_blocks(10_000)) for group in states} == {3}


def test_stages_of_attention_alone_have_room_for_states() -> None:
    """vLLM sizes blocks by what the class may keep (`platforms/interface.py: _align_hybrid_block_size`)."""
    model = load_model("Qwen/Qwen3-Next-80B-A3B-Instruct")

    def sizes(stages: int) -> set[int]:
        args = EngineArgs(pipeline_parallel_size=stages, max_num_batched_tokens=8192, max_num_seqs=256)
        groups = kv_layout(model, args, 20 * GiB).groups
        return {group.block_size for group in groups if group.kind is AttentionKind.FULL}

    assert sizes(1) == sizes(len(model.layers)) == {544}


def test_older_versions_plan_by_their_own_rules() -> None:
    """Gemma-3-1B under 0.13, as a start-up log prints it: 25.39 GiB, 950,864 tokens, 461.21x for 2,048."""
    model, args = model_of("gemma-3-1b"), flags(max_model_len=2048)
    sizes = [int(gib * GiB) for gib in (25.385, 25.395)]
    old = [kv_layout(model, args, size, version=(0, 13)) for size in sizes]
    assert old[0].kv_cache_size_tokens <= 950_864 <= old[1].kv_cache_size_tokens
    assert old[0].max_concurrency <= 461.21 <= old[1].max_concurrency + 0.005
    new = kv_layout(model, args, sizes[0])
    assert new.kv_cache_size_tokens == int(new.max_concurrency * 2048) != old[0].kv_cache_size_tokens
    longer = flags(max_model_len=32_768)
    assert kv_layout(model, longer, sizes[0], version=(0, 24)).groups[0].blocks_per_request == 545
    assert kv_layout(model, longer, sizes[0]).groups[0].blocks_per_request == 1057


def test_newer_versions_widen_gated_delta_net_blocks() -> None:
    """0.33 takes attention blocks of 64 tokens beside a gated delta net: Qwen3-Next on 4 ranks, 272 -> 320."""
    sizes = {
        v: kv_layout(model_of("qwen3-next-80b-a3b"), flags(tp=4), 20 * GiB, version=v)
        for v in [(0, 32), (0, 33)]
    }
    assert [found.block_size for found in sizes.values()] == [272, 320]
    assert [found.groups[0].blocks_per_request for found in sizes.values()] == [2, 3]


def test_equals_vllm_033_on_random_cases() -> None:
    """The planner of 0.33 on models, cards, parallel sizes, dtypes and flags drawn at random, refusals included."""
    assert len(cases_of_033()) >= 150
    for case, golden in cases_of_033():
        assert comparable(case, answer(case, (0, 33))) == comparable(case, golden), case


def test_states_are_exported_where_flashinfer_runs() -> None:
    """From 0.33 on, with prefix caching: Hopper and Blackwell keep one more block, Ampere and Ada none."""
    for card, blocks in (("H100", 3), ("B200", 3), ("A100", 2), ("L40S", 2)):
        found = kv_layout(
            model_of("qwen3-next-80b-a3b"),
            flags(tp=4),
            20 * GiB,
            capability=CARDS[card],
            version=(0, 33),
        )
        assert (found.groups[0].blocks_per_request, found.block_size % 64 == 0) == (blocks, blocks == 3), card


@given(
    st.sampled_from(sorted(GOLDEN["configs"])),
    st.fixed_dictionaries(
        {},
        optional={
            "tp": st.integers(1, 16),
            "pp": st.integers(1, 6),
            "dcp": st.integers(1, 8),
            "kv_cache_dtype": st.sampled_from([*KV_DTYPES, "int3"]),
            "kv_cache_dtype_skip_layers": st.lists(st.sampled_from(["0", "3", "sliding_window", "x"])).map(
                tuple
            ),
            "block_size": st.integers(1, 2_000),
            "max_model_len": st.integers(1, 3_000_000) | st.just(-1),
            "num_speculative_tokens": st.integers(0, 4),
            "spec_method": st.sampled_from(["mtp", "ngram", "eagle"]),
            "disable_hybrid_kv_cache_manager": st.booleans(),
            "enable_prefix_caching": st.booleans(),
            "num_gpu_blocks_override": st.integers(1, 10**9),
        },
    ),
    st.sampled_from([(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]),
    st.integers(-1, 10**13),
)
def test_every_outcome_is_an_answer_or_a_named_error(
    name: str, given: Case, capability: tuple[int, int], available: int
) -> None:
    """Any model, flags and card: a layout that holds one request, or one line that says why not."""
    try:
        found = kv_layout(model_of(name), flags(**given), available, capability=capability)
    except KvplanError as error:
        found, refused = None, str(error)
    if found is None:
        assert refused
        assert "\n" not in refused
    else:
        assert found.blocks_per_request < found.num_blocks
        assert all(group.bytes_per_block > 0 for group in found.groups)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"tp": 3}, "does not divide"),
        ({"pp": 99}, "exceeds"),
        ({"dcp": 2}, "must divide"),
        ({"tp": 8, "dcp": 2}, "needs more tensor-parallel ranks"),
        ({"kv_cache_dtype": "fp9"}, "did you mean fp8"),
        ({"kv_cache_dtype": "fp8_ds_mla"}, "no attention backend takes"),
        ({"attention_backend": "FLASH_INFER"}, "did you mean FLASHINFER"),
        ({"block_size": 24}, "block size 24 not supported"),
        ({"num_speculative_tokens": 2}, "no multi-token-prediction layers"),
    ],
)
def test_refusals_say_what_was_asked(given: Case, says: str) -> None:
    """What the engine refuses is one line that names the flag or the value."""
    with pytest.raises(KvplanError, match=says) as refused:
        kv_layout(dense(), flags(**given), 20 * GiB)
    assert "\n" not in str(refused.value)


def test_fp8_needs_a_card_that_reads_it() -> None:
    """Triton's fp8 needs compute capability 8.9: a T4 has 7.5."""
    with pytest.raises(KvplanError, match=r"compute capability 8\.9"):
        kv_layout(dense(), flags(kv_cache_dtype="fp8"), 20 * GiB, capability=(7, 5))


@pytest.mark.parametrize(
    "capability", [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]
)
def test_every_card_has_a_backend(capability: tuple[int, int]) -> None:
    """16-bit KV works on every generation, and the backend that serves it is one we know."""
    found = kv_layout(dense(), flags(dtype="float16"), 20 * GiB, capability=capability)
    assert set(found.attention_backends) <= set(BACKENDS)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({}, "auto"),
        ({"quant_method": "fp8"}, "auto"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, "fp8"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, "auto"),
        ({"quant_method": "modelopt", "quantization": {"kv_cache_quant_algo": "FP8"}}, "fp8_e4m3"),
        (
            {
                "quant_method": "modelopt",
                "kv_cache_scheme": {"type": "float", "num_bits": 8, "dynamic": False},
            },
            "fp8_e4m3",
        ),
        ({"quant_method": "modelopt_fp4", "kv_cache_scheme": {"type": "float", "num_bits": 4}}, "nvfp4"),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "INT8"}, "auto"),
    ],
)
def test_checkpoints_choose_their_kv_dtype(quantization: Case, dtype: str) -> None:
    """A quantised checkpoint's own KV dtype applies under --kv-cache-dtype auto."""
    assert checkpoint_kv_dtype(quantization) == dtype


@pytest.mark.parametrize(
    "name", ["zai-org/GLM-5.3-Flash", "Qwen/Qwen3.8-Flash-Next", "deepseek-ai/DeepSeek-V4-Flash"]
)
@pytest.mark.parametrize("engine", ["vllm@0.30", "sglang"])
def test_caches_of_one_planner_are_refused_for_others(name: str, engine: str) -> None:
    """Pooled indexers and compressed latents: only vLLM 0.32's layout was read."""
    with pytest.raises(KvplanError, match="planned as vLLM"):
        estimate(name, "b300", EngineArgs(tensor_parallel_size=8), engine=engine)
