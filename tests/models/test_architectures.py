"""Every architecture beside vLLM's own model class and planner, at tensor-parallel sizes 1, 2 and 8.

`fixtures/architectures_vllm_0.32.json.xz` is what vLLM 0.32.0 answered, on torch's meta device under its H100 platform
(`make_architectures.py`): bytes of parameters and of rotary tables on one rank, and the plan of 20 GiB of KV.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

import pytest
from places import FIXTURES

from kvplan.engines.flags import EngineArgs
from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.layout import kv_layout
from kvplan.models.architectures import BUILDERS, ORACLE, architectures, from_config, how_checked
from kvplan.models.load import load_model
from kvplan.models.names import NO_PIPELINE, UNHELD
from kvplan.models.spec import AttentionKind, ModelSpec
from kvplan.models.weights import heaviest_rank
from kvplan.simulation.deploy import scheduler_group

CASES: dict[str, Any] = json.loads(
    lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes())
)
SIZES = (1, 2, 8)
PADDED = {("KimiLinearForCausalLM", 8): "its expert kernel pads widths below 256"}
"""Weights that vLLM pads in ways that are not modelled, and why."""


@cache
def model_of(name: str) -> ModelSpec:
    return from_config(CASES[name]["config"], name)


def kept_twice(model: ModelSpec, tp: int) -> int:
    """Latent attention's second kv_b_proj: vLLM makes it after loading, so its classes do not show it."""
    latent = [m for layer in model.layers for m in layer.mixers if m.is_latent]
    return sum(2 * (a.num_heads // tp) * (a.qk_nope_head_dim + a.v_head_dim) * a.kv_lora_rank for a in latent)


def text_only(name: str) -> bool:
    """Whether vLLM ran the language model alone."""
    return bool(CASES[name].get("flags", {}).get("language_model_only"))


def drafts(name: str) -> int:
    """Tokens that vLLM was told to draft with the model's own layers."""
    return int(CASES[name].get("flags", {}).get("speculative_config", {}).get("num_speculative_tokens", 0))


def method(name: str) -> str:
    """Who drafts."""
    return str(CASES[name].get("flags", {}).get("speculative_config", {}).get("method", "mtp"))


def flags_of(name: str, tp: int) -> EngineArgs:
    """The flags of a case, with prefix caching where vLLM has it."""
    kinds = {m.kind for layer in model_of(name).layers for m in layer.mixers} - {AttentionKind.NONE}
    flags: dict[str, Any] = {"attention_backend": CASES[name].get("flags", {}).get("attention_backend")}
    if text_only(name):
        flags["language_model_only"] = True
    return EngineArgs(
        tensor_parallel_size=tp,
        max_num_batched_tokens=8192,
        max_num_seqs=256,
        enable_prefix_caching=kinds != {AttentionKind.STATE},
        num_speculative_tokens=drafts(name),
        speculative_method=method(name),
        **flags,
    )


@cache
def beside(name: str) -> ModelSpec | None:
    """A model that drafts beside it."""
    config = CASES[name].get("draft")
    config = config or CASES[name].get("flags", {}).get("speculative_config", {}).get("model")
    return from_config(config, f"draft of {name}") if config else None


def weights_beside(name: str, tp: int) -> int:
    """Bytes of the parameters of what drafts: the tables are the target's, Gemma 4's order of words is a buffer."""
    draft = beside(name)
    if draft is None:
        return 0
    mine = heaviest_rank(draft, tensor_parallel_size=tp)
    orders = sum(w.rows * w.itemsize for w in draft.extras) if draft.backbone_hidden_size else 0
    return mine.total - mine.rotary - orders


def started() -> list[tuple[str, int]]:
    return [
        (name, tp) for name, case in CASES.items() for tp in SIZES if "error" not in case["vllm"][str(tp)]
    ]


@pytest.mark.parametrize(("name", "tp"), started())
def test_weights_equal_vllms(name: str, tp: int) -> None:
    """To a kilobyte, or three millionths; far within 0.1 %."""
    if (name, tp) in PADDED:
        pytest.skip(PADDED[name, tp])
    theirs, model = CASES[name]["vllm"][str(tp)], model_of(name)
    built = model.drafting_by(method(name), drafts(name))
    mine = heaviest_rank(
        built,
        tensor_parallel_size=tp,
        use_mtp=drafts(name) > 0 and not beside(name),
        language_model_only=text_only(name),
    )
    weights = mine.total - mine.rotary - kept_twice(model, tp) + weights_beside(name, tp)
    assert abs(weights - theirs["weights"]) <= max(1024, theirs["weights"] // 300_000)
    assert mine.rotary == theirs["rotary"]


@pytest.mark.parametrize(("name", "tp"), started())
def test_kv_plan_equals_vllms(name: str, tp: int) -> None:
    """Bytes of a block, blocks and printed tokens; what vLLM refuses is refused."""
    theirs, model = CASES[name]["vllm"][str(tp)], model_of(name)
    args = flags_of(name, tp)
    if "refused" in theirs:
        with pytest.raises(KvplanError):
            kv_layout(model, args, 20 * GiB, draft=beside(name))
        return
    mine = kv_layout(model, args, 20 * GiB, draft=beside(name))
    said = theirs["bytes_per_block"], theirs["num_blocks"], theirs["tokens"]
    assert (mine.bytes_per_block, mine.num_blocks, mine.kv_cache_size_tokens) == said


KINDS = {
    "FullAttentionSpec": "full",
    "MLAAttentionSpec": "full",
    "SinkFullAttentionSpec": "full",
    "SlidingWindowSpec": "sliding_window",
    "SlidingWindowMLASpec": "sliding_window",
    "ChunkedLocalAttentionSpec": "chunked_local",
    "MambaSpec": "mamba",
    "CircularBufferSpec": "circular_buffer",
}
"""vLLM's specs, and what the scheduler here calls them."""
SCHEDULED_OTHERWISE = {
    "UnlimitedOCRForCausalLM": "vLLM gives back what lies between prompt and window (RSWASpec): kept here",
    "Zamba2ForCausalLM": "vLLM takes blocks of the shared attention first, of states second",
}


@pytest.mark.parametrize("name", [n for n, tp in started() if tp == 1 and "groups" in CASES[n]["vllm"]["1"]])
def test_the_scheduler_knows_vllms_groups(name: str) -> None:
    """In vLLM's order: kind, layers, tokens per block, window; whether others may hit it; where states are written."""
    if name in SCHEDULED_OTHERWISE:
        pytest.skip(SCHEDULED_OTHERWISE[name])
    model, args = model_of(name), flags_of(name, 1)
    if model.encoded_tokens:
        pytest.skip("encoder-decoders are not simulated")
    groups = kv_layout(model, args, 20 * GiB, draft=beside(name)).groups
    mine = []
    for group, seen in [(group, scheduler_group(group, args)) for group in groups]:
        aligned = seen.kind == "mamba" and seen.mode == "align"
        state = [seen.mode, seen.checkpoint_blocks, seen.checkpoint_alignment] if aligned else [None] * 3
        shape = [seen.kind, group.num_layers, seen.block_size, seen.window or seen.chunk]
        named = [seen.prefix_cacheable, seen.prefix_replay_tokens]
        mine.append([*shape, *named, *state, len(groups) > 1 and seen.eagle])
    theirs = []
    for kind, *shape, mode, blocks, alignment, eagle in CASES[name]["vllm"]["1"]["groups"]:
        state = [mode, blocks, alignment] if mode == "align" else [None] * 3
        theirs.append([KINDS[kind], *shape, *state, eagle])
    assert mine == theirs


def test_latents_of_deepseek_v41_are_smaller_on_blackwell() -> None:
    """vLLM 0.32 under its B200 platform: windows in MXFP8, compressed latents in NVFP4, blocks of 128."""
    args = EngineArgs(max_num_batched_tokens=8192, max_num_seqs=256)
    mine = kv_layout(model_of("DeepseekV41ForCausalLM"), args, 20 * GiB, capability=(10, 0))
    assert (mine.bytes_per_block, mine.num_blocks, mine.kv_cache_size_tokens) == (135168, 158875, 15456718)


def test_formats_and_stages_of_deepseek_v41() -> None:
    """On Blackwell fp8_ds_mla keeps latents at 528 bytes; four stages would cut layers from the latents they read."""
    model = model_of("DeepseekV41ForCausalLM")

    def block(**flags: Any) -> int:
        args = EngineArgs(max_num_batched_tokens=8192, max_num_seqs=256, **flags)
        return kv_layout(model, args, 20 * GiB, capability=(10, 0)).bytes_per_block

    assert block(kv_cache_dtype="nvfp4_ds_mla") == block()
    assert block(kv_cache_dtype="fp8_ds_mla") - block() == 5 * 64 * (528 - 288)
    assert block(pipeline_parallel_size=2) < block()
    with pytest.raises(KvplanError, match="latents of another stage"):
        block(pipeline_parallel_size=4)


def test_pages_of_no_common_size_are_refused_in_those_words() -> None:
    """As vLLM 0.32 refuses Ling 2.5 under a model type that is not its own; no flag is named that nobody gave."""
    args = EngineArgs(tensor_parallel_size=8, max_num_batched_tokens=8192, max_num_seqs=256)
    with pytest.raises(KvplanError, match="cannot be brought to one size"):
        kv_layout(model_of("BailingMoeV2_5ForCausalLM of another model type"), args, 20 * GiB)


@pytest.mark.parametrize("name", CASES)
def test_what_vllm_cannot_cut_is_refused(name: str) -> None:
    """Heads that do not divide; other errors are of vLLM's class and say nothing of sizes."""
    for tp in SIZES:
        said = CASES[name]["vllm"][str(tp)].get("error", "")
        if "must be divisible by tensor parallel size" in said:
            cut = beside(name) or model_of(name)
            with pytest.raises(KvplanError):
                heaviest_rank(cut, tensor_parallel_size=tp, language_model_only=text_only(name))


def test_most_text_architectures_are_covered() -> None:
    """112 of the 118 in vLLM 0.32's registry, and all but one of those it runs through transformers' classes."""
    text = [name for name in CASES if name in BUILDERS and name.endswith(("CausalLM", "Model"))]
    assert len(text) >= 112


def test_unheld_architectures_are_those_no_oracle_ran() -> None:
    """What `kvplan models --family` says of each name is what the fixtures hold."""
    ran = {CASES[name]["config"].get("architectures", [name])[0] for name, _ in started()}
    ran |= {draft.architecture for name, _ in started() if (draft := beside(name))}
    bundled = json.loads((FIXTURES / "weights_vllm_0.32.json").read_text())["bytes"]
    ran |= {load_model(name).architecture for name in {key.split("@")[0] for key in bundled}}
    ran |= set(json.loads((FIXTURES / "heads_vllm_0.32.json").read_text())["heads"])
    with_drafts = json.loads((FIXTURES / "draft_plans_vllm_0.32.json").read_text()).values()
    ran |= {from_config(case["draft"], "draft").architecture for case in with_drafts if "draft" in case}
    assert set(architectures()) - ran == UNHELD
    assert how_checked("LlamaForCausalLM") == ORACLE


@pytest.mark.parametrize("name", ["XverseForCausalLM"])
def test_names_that_vllm_ran_as_llama(name: str) -> None:
    """vLLM up to 0.23; the oracle of 0.32 has them no more."""
    llama = CASES["LlamaForCausalLM"]["config"] | {"architectures": [name]}
    assert heaviest_rank(from_config(llama, name)) == heaviest_rank(model_of("LlamaForCausalLM"))


UNKNOWN = {
    "architectures": ["NewForCausalLM"],
    "model_type": "new",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
}


def test_an_unknown_architecture_of_plain_keys_is_assumed_a_plain_decoder() -> None:
    """It says so, and weighs what a Llama of these sizes weighs."""
    model = from_config(UNKNOWN, "new")
    llama = from_config({**UNKNOWN, "architectures": ["LlamaForCausalLM"]}, "llama")
    assert model.assumed == "planned as a plain decoder"
    assert not llama.assumed
    assert heaviest_rank(model) == heaviest_rank(llama)


@pytest.mark.parametrize(
    "key",
    ["sliding_window", "layer_types", "num_experts", "kv_lora_rank", "state_size", "compress_ratios", "new"],
)
def test_an_unknown_key_refuses_an_unknown_architecture(key: str) -> None:
    """Whatever it may mean; a null counts as absent."""
    with pytest.raises(KvplanError, match="'NewForCausalLM' is not supported"):
        from_config({**UNKNOWN, key: 1}, "new")
    assert from_config({**UNKNOWN, key: None}, "new").assumed


@pytest.mark.parametrize("name", sorted(NO_PIPELINE & set(CASES)))
def test_classes_without_pipeline_stages_are_refused_more_than_one(name: str) -> None:
    """vLLM 0.32 `config/model.py: verify_with_parallel_config`."""
    args = EngineArgs(pipeline_parallel_size=2, max_num_batched_tokens=8192, max_num_seqs=256)
    with pytest.raises(KvplanError, match=f"{name} has no pipeline stages"):
        kv_layout(model_of(name), args, 20 * GiB)
