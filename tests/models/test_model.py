"""Models from configs: the catalog, shapes against vLLM's own, names, and every kind of bad input."""

from __future__ import annotations

import json
import lzma
import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import FIXTURES, ROOT

from kvplan.ground.errors import KvplanError
from kvplan.models.config import MAX_CONFIG_BYTES, parse_json
from kvplan.models.load import aliases, bundled_models, find_bundled, from_config, load_model
from kvplan.models.not_planned import NOT_PLANNED
from kvplan.models.spec import AttentionKind, AttentionSpec, ModelSpec
from kvplan.models.weights import active_parameters, heaviest_rank, parameters

TRUTH = ROOT.parent / "shared" / "truth" / "layout"
CATALOG = ROOT / "kvplan" / "catalog" / "models"

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


NAMES = bundled_models()


def raw(name: str) -> dict[str, Any]:
    """The bundled JSON of a model."""
    path = find_bundled(name)
    assert path is not None
    config = json.loads(path.read_text())
    return {**raw(config["_base"]), **config} if "_base" in config else config


# ---- the catalog


def test_the_catalog_covers_the_field() -> None:
    """At least 45 models, each with a source; the models people reason with are among them."""
    names = bundled_models()
    assert len(names) >= 45
    assert all(raw(name)["_source"] for name in names)
    wanted = """QwQ-32B DeepSeek-R1-Distill-Qwen-1.5B DeepSeek-R1-Distill-Qwen-7B DeepSeek-R1-Distill-Llama-8B
    DeepSeek-R1-Distill-Qwen-14B DeepSeek-R1-Distill-Qwen-32B DeepSeek-R1-Distill-Llama-70B Qwen3-0.6B Qwen3-1.7B
    Qwen3-4B Qwen3-8B Qwen3-14B Qwen3-32B Qwen3-30B-A3B Qwen3-235B-A22B Llama-2-7b-hf Llama-2-70b-hf Llama-3.1-8B
    Llama-3.1-70B Llama-3.1-405B Llama-3.2-1B Llama-3.2-3B Llama-3.3-70B-Instruct Mistral-7B-v0.1 Yi-34B phi-4
    Mistral-Nemo-Instruct-2407 Mistral-Small-3.2-24B-Instruct-2506 Mixtral-8x7B-v0.1 Phi-3-mini-4k-instruct
    gemma-2-9b-it gemma-3-27b-it gemma-4-31B-it gpt-oss-20b gpt-oss-120b DeepSeek-V2-Lite DeepSeek-V3 DeepSeek-R1
    DeepSeek-V3.2 Kimi-K2-Instruct Kimi-Linear-48B-A3B-Instruct GLM-4.5 GLM-4.5-Air GLM-5 MiniMax-M2
    Llama-4-Scout-17B-16E-Instruct Llama-4-Maverick-17B-128E-Instruct Qwen3-Next-80B-A3B-Thinking Qwen3.5-27B
    Qwen3.6-35B-A3B Nemotron-H-56B-Base-8K NVIDIA-Nemotron-Nano-9B-v2 Falcon-H1-7B-Instruct EXAONE-4.0-32B
    granite-3.3-8b-instruct granite-4.0-h-small Qwen2.5-72B-Instruct Qwen2.5-Math-PRM-7B"""
    tails = {name.rpartition("/")[2] for name in names}
    assert not set(wanted.split()) - tails


def test_a_config_file_is_named_only_with_where_it_was_read() -> None:
    """`config.json of X` alone would say that the published file itself was at hand."""
    where = "as shipped in|shipped in|as in|as carried by|as carried unchanged by|as printed|as a public|as two public"
    for name in bundled_models():
        source = str(raw(name)["_source"])
        if "config.json" in source:
            assert re.search(where, source), (name, source)


@pytest.mark.parametrize("name", bundled_models())
def test_every_bundled_config_is_read(name: str) -> None:
    """Each gives a model whose name and source are its own, with layers that have a purpose."""
    model = load_model(name)
    assert model.name == name
    assert model.source.startswith("bundled: ")
    assert len(model.layers) >= (4 if model.encoded_tokens or model.only_drafts else 12)
    for layer in model.layers:
        assert layer.mlp.intermediate_size or any(m.kind is not AttentionKind.NONE for m in layer.mixers)


RETOLD = {"stepfun-ai/Step-3.7-Flash", "MiniMaxAI/MiniMax-M3"}
"""Whose config aiconfigurator retells under an architecture of its own name, leaving out windowed heads, a tower."""


def test_the_catalog_agrees_with_aiconfigurator() -> None:
    """Where aiconfigurator-core ships the same model, both configs give the same model."""
    core = pytest.importorskip("aiconfigurator_core", reason="aiconfigurator-core is not installed")
    folder = Path(core.__file__).parent / "model_configs"
    compared = 0
    for name in bundled_models():
        renamed = name.replace("Llama-3.1-", "Meta-Llama-3.1-").replace("/", "--")
        file = folder / f"{renamed}_config.json"
        if not file.is_file() or name in RETOLD:
            continue
        theirs, ours = from_config(json.loads(file.read_text()), name), load_model(name)
        vision = ours.vision if theirs.vision is None else theirs.vision  # Llama 4's is left out there
        # bundled as base plus the keys of quantization_config that matter
        reduced = {"_base", "_reduced"} & raw(name).keys()
        quantization = ours.quantization if reduced else theirs.quantization
        same = {"source": ours.source, "vision": vision, "quantization": quantization}
        assert replace(theirs, **same) == ours, name
        compared += 1
    assert compared >= 30


# ---- shapes against vLLM's


def shape(a: AttentionSpec) -> tuple[Any, ...]:
    return (a.kind, a.num_kv_heads, a.head_dim, a.v_head_dim, a.window)


F, S, C = AttentionKind.FULL, AttentionKind.SLIDING, AttentionKind.CHUNKED


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("QwQ-32B", {(F, 8, 128, 128, 0): 64}),
        ("gemma-3-27b-it", {(S, 16, 128, 128, 1024): 52, (F, 16, 128, 128, 0): 10}),
        ("gemma-3-1b-it", {(S, 1, 256, 256, 512): 22, (F, 1, 256, 256, 0): 4}),
        ("gemma-4-26B-A4B", {(S, 8, 256, 256, 1024): 25, (F, 2, 512, 512, 0): 5}),
        ("MiMo-V2-Flash", {(S, 8, 192, 128, 128): 39, (F, 4, 192, 128, 0): 9}),
        ("Llama-4-Scout-17B-16E-Instruct", {(C, 8, 128, 128, 8192): 36, (F, 8, 128, 128, 0): 12}),
        ("EXAONE-4.0-32B", {(S, 8, 128, 128, 4096): 48, (F, 8, 128, 128, 0): 16}),
        ("Mistral-7B-v0.1", {(S, 8, 128, 128, 4096): 32}),
        ("gpt-oss-20b", {(S, 8, 64, 64, 128): 12, (F, 8, 64, 64, 0): 12}),
    ],
)
def test_attention_of_each_layer(name: str, layers: dict[tuple[Any, ...], int]) -> None:
    """Kinds, heads, dims and windows as vLLM's planner sees them (0.32, its layer specs on a CPU)."""
    assert Counter(shape(layer.attention) for layer in load_model(name).layers) == layers


def test_latent_attention() -> None:
    """DeepSeek: one latent of 512 + 64 a token; V3.2 adds an indexer; GLM-5.2 shares it between layers."""
    r1, sparse = (
        load_model("DeepSeek-R1").layers[0].attention,
        load_model("DeepSeek-V3.2").layers[0].attention,
    )
    assert (r1.kind, r1.kv_lora_rank + r1.qk_rope_head_dim, r1.index_head_dim) == (AttentionKind.MLA, 576, 0)
    assert (sparse.index_head_dim, sparse.index_topk) == (128, 2048)
    shared = from_config({**raw("GLM-5"), "index_topk_freq": 4, "index_skip_topk_offset": 3})
    owners = [i for i, layer in enumerate(shared.layers) if layer.attention.index_head_dim]
    assert owners == [0, 1, 2, *range(6, 78, 4)]


def test_states() -> None:
    """Hybrids keep what vLLM's state formulas need, and the dtype their family asks for."""
    next_ = load_model("Qwen3-Next-80B-A3B-Instruct")
    kinds = Counter(layer.attention.kind for layer in next_.layers)
    assert kinds == {AttentionKind.STATE: 36, AttentionKind.FULL: 12}
    gdn = next_.layers[0].attention.state
    assert gdn is not None
    assert (gdn.family, gdn["num_k_heads"], gdn["num_v_heads"], gdn.ssm_dtype) == (
        "gdn_attention",
        16,
        32,
        "auto",
    )
    qwen = load_model("Qwen3.5-27B").layers[0].attention.state
    nemotron = load_model("Nemotron-H-56B-Base-8K").layers[0].attention.state
    assert qwen is not None
    assert nemotron is not None
    assert (qwen.ssm_dtype, nemotron.ssm_dtype) == ("float32", "float32")
    kimi = load_model("Kimi-Linear-48B-A3B-Instruct")
    assert [i + 1 for i, layer in enumerate(kimi.layers) if layer.attention.kind is AttentionKind.MLA] == [
        4, 8, 12, 16, 20, 24, 27
    ]  # fmt: skip


def test_attention_and_state_side_by_side() -> None:
    """Falcon-H1's layers remember twice: attention first, as vLLM lists them."""
    layer = load_model("Falcon-H1-7B-Instruct").layers[0]
    assert [m.kind for m in layer.mixers] == [AttentionKind.FULL, AttentionKind.STATE]


def test_layers_equal_vllms_specs() -> None:
    """For every case of vLLM's planner: as many layers of each kind, head count, size and window."""
    golden = TRUTH / "layout_golden.jsonl"
    if not golden.is_file():
        pytest.skip(f"no reference data at {golden}")
    checked = 0
    for line in golden.read_text().splitlines():
        row = json.loads(line)
        case, result = row["case"], row["result"]
        if "config" not in case or "layer_specs" not in result:
            continue
        config = json.loads((TRUTH / case["config"]).read_text()) | (case.get("config_update") or {})
        ours = layer_specs(from_config(config, case["id"]), case)
        theirs = Counter()
        for spec in result["layer_specs"]:
            theirs[spec_key(spec)] += spec["layers"]
        assert ours == theirs, case["id"]
        checked += 1
    assert checked >= 60


WORDS = {
    "FullAttentionSpec": F,
    "SlidingWindowSpec": S,
    "ChunkedLocalAttentionSpec": C,
    "MLAAttentionSpec": AttentionKind.MLA,
    "MambaSpec": AttentionKind.STATE,
}


def spec_key(spec: dict[str, Any]) -> tuple[Any, ...]:
    kind = WORDS[spec["kind"]]
    if kind is AttentionKind.STATE:
        return (kind,)
    if kind is AttentionKind.MLA:
        return (kind, spec["head_size"])
    window = spec.get("sliding_window") or spec.get("attention_chunk_size") or 0
    return (kind, spec["num_kv_heads"], spec["head_size"], spec["head_size_v"], window)


def layer_specs(model: ModelSpec, case: dict[str, Any]) -> Counter[tuple[Any, ...]]:
    """Our layers in vLLM's words; a disabled hybrid manager turns windows into full attention there."""
    found: Counter[tuple[Any, ...]] = Counter()
    drafted = model.mtp_layers if case.get("num_speculative_tokens") else ()
    for a in (m for layer in (*model.layers, *drafted) for m in layer.mixers):
        if a.kind is AttentionKind.MLA:
            found[(a.kind, a.kv_lora_rank + a.qk_rope_head_dim)] += 1
            if a.index_head_dim:
                found[(a.kind, a.index_head_dim + 4)] += 1
        elif a.kind is AttentionKind.STATE:
            found[(a.kind,)] += 1
        elif a.kind is not AttentionKind.NONE:
            heads = max(1, a.num_kv_heads // case.get("tp", 1))
            found[(a.kind, heads, a.head_dim, a.v_head_dim, a.window)] += 1
    return found


# ---- lengths and dtypes


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        (None, 8192),
        ({"rope_type": "linear", "factor": 4.0}, 32768),
        ({"type": "dynamic", "factor": 2.0}, 16384),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 8192),
    ],
)
def test_longest_context(rope: dict[str, Any] | None, expected: int) -> None:
    """Linear and dynamic scaling lengthen; yarn, llama3 and longrope configs are scaled already (vLLM 0.32)."""
    assert from_config({**LLAMA, "rope_scaling": rope}).max_model_len == expected


def test_longrope_serves_the_original_length() -> None:
    """Phi-4-mini allows 131,072 tokens; vLLM serves 4,096 unless told."""
    phi = load_model("Phi-4-mini-instruct")
    assert (phi.max_model_len, phi.default_max_model_len) == (131072, 4096)
    assert load_model("Qwen3-8B").default_max_model_len == 40960


def test_searched_layers() -> None:
    """Nemotron Super: 49 of 80 layers attend; the others are MLPs of several widths."""
    model = load_model("Llama-3_3-Nemotron-Super-49B-v1")
    kinds = Counter(layer.attention.kind for layer in model.layers)
    assert kinds == {AttentionKind.FULL: 49, AttentionKind.NONE: 31}
    assert len({layer.mlp.intermediate_size for layer in model.layers}) == 6
    blocks = raw(model.name)["block_configs"]
    blocks[3] = {**blocks[3], "attention": {"replace_with_linear": True}}
    with pytest.raises(KvplanError, match="replace_with_linear is not supported"):
        from_config({**raw(model.name), "block_configs": blocks})
    with pytest.raises(KvplanError, match="block_configs must describe each"):
        from_config({**raw(model.name), "block_configs": blocks[:5]})


def test_nested_text_config() -> None:
    """A multimodal config gives the same layers as its text_config alone."""
    whole = raw("Qwen3.5-27B")
    text = {**whole["text_config"], "architectures": ["Qwen3_5ForCausalLM"]}
    assert from_config(text).layers == from_config(whole).layers


# ---- finding a model


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "qwen3-8b", "QWEN/qwen3-8B"])
def test_names_ignore_case_and_organisation(name: str) -> None:
    assert load_model(name).name == "Qwen/Qwen3-8B"


def test_an_alias_keeps_its_name() -> None:
    """The asked checkpoint is the one to serve; the other only lends its config."""
    targets = json.loads((CATALOG / "aliases.json").read_text())
    assert set(aliases()) == set(targets)
    for name, target in targets.items():
        for spelling in (name, name.upper()):
            model = load_model(spelling)
            assert (model.name, model.planned_as) == (name, target)
            assert replace(model, name=target, planned_as="") == load_model(target)
    assert load_model("llama-3.1-8b-instruct").name == "meta-llama/Llama-3.1-8B-Instruct"
    assert load_model("Qwen/Qwen3-8B").planned_as == ""


def test_a_publishers_name_is_not_anothers() -> None:
    """Checkpoints of one name by two publishers are quantised differently."""
    with pytest.raises(KvplanError, match="did you mean"):
        load_model("RedHatAI/Qwen3.6-35B-A3B-NVFP4")


def test_files_and_folders(tmp_path: Path) -> None:
    """A config.json, its folder, and ModelOpt's sidecar beside it."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert load_model(folder).name == load_model(folder / "config.json").name == "my-model"
    assert load_model(folder).quantization is None
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert load_model(folder).quantization is not None


def test_unknown_names_get_the_closest() -> None:
    with pytest.raises(KvplanError, match=r"did you mean .*Qwen3-8B"):
        load_model("Qwen3-8BB")


def test_the_hub_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hub=True nothing is imported for it; without the package the extra is named."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(KvplanError, match="not a bundled model"):
        load_model("someone/unheard-of")
    with pytest.raises(KvplanError, match=r"kvplan\[hub\]"):
        load_model("someone/unheard-of", hub=True)


def test_the_hub_gives_a_config_and_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the package, the repo's config.json is fetched and its revision kept; failures are one line."""
    snapshot = tmp_path / "0123456789abcdef"
    snapshot.mkdir()
    there = {"config.json": json.dumps(LLAMA)}

    class NotThere(RuntimeError):
        pass

    def download(repo: str, file: str) -> str:
        if repo != "someone/new-model":
            raise OSError("404\nsecond line")
        if file not in there:
            raise NotThere(file)
        (snapshot / file).parent.mkdir(exist_ok=True)
        (snapshot / file).write_text(there[file])
        return str(snapshot / file)

    hub, errors = ModuleType("huggingface_hub"), ModuleType("huggingface_hub.errors")
    hub.hf_hub_download = download
    errors.HfHubHTTPError = errors.HFValidationError = RuntimeError
    errors.EntryNotFoundError = NotThere
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    model = load_model("someone/new-model", hub=True)
    assert (model.name, model.source) == ("someone/new-model", "hub: someone/new-model@0123456789ab")
    assert (model.pools, model.quantization) == ("", None)
    pooling = {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    there |= {
        "modules.json": json.dumps([pooling]),
        "1_Pooling/config.json": json.dumps({"pooling_mode_mean_tokens": True}),
        "hf_quant_config.json": json.dumps({"quantization": {"quant_algo": "FP8"}}),
    }
    pools = load_model("someone/new-model", hub=True)
    assert (pools.pools, pools.pooled_by) == ("embed", "MEAN")
    assert pools.quantization is not None
    with pytest.raises(KvplanError, match=r"^'a/b': the hub gave no config.json \(404\)$"):
        load_model("a/b", hub=True)


# ---- bad input

ORIGINAL = "original_max_position_embeddings"
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 2048}


def bad(message: str, **changes: Any) -> Any:
    return pytest.param(message, changes, id=message[:40])


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        bad("architectures is missing", architectures=None),
        bad(
            "'RwkvForCausalLM' is not supported",
            architectures=["RwkvForCausalLM"],
            attention_hidden_size=4096,
        ),
        bad("architectures must be a list of texts", architectures="LlamaForCausalLM"),
        bad("hidden_size is missing", hidden_size=None),
        bad("num_attention_heads is 0", num_attention_heads=0),
        bad("num_key_value_heads is -8", num_key_value_heads=-8),
        bad("num_attention_heads 32 is not a multiple of num_key_value_heads 5", num_key_value_heads=5),
        bad("head_dim is missing", num_attention_heads=24),
        bad("num_hidden_layers must be a whole number, not 'many'", num_hidden_layers="many"),
        bad("num_hidden_layers is 1000000000", num_hidden_layers=10**9),
        bad("vocab_size is missing", vocab_size=None),
        bad("max_position_embeddings is -1", max_position_embeddings=-1),
        bad("layer_types has 1 entries for num_hidden_layers 32", layer_types=["full_attention"]),
        bad("unknown attention kind 'retrieval'", layer_types=["retrieval"] * 32),
        bad("sliding_window is missing", layer_types=["sliding_attention"] * 32),
        bad("torch_dtype 'int3' is not one of", torch_dtype="int3"),
        bad("factor must be a number above 0", rope_scaling={"rope_type": "linear", "factor": -2}),
        *(bad(f"{key} must be a number", rope_scaling={**YARN, key: "4"}) for key in ("factor", "beta_fast")),
        bad("original_max_position_embeddings must be", rope_scaling={**YARN, ORIGINAL: "2048"}),
        *(
            bad("factor is missing", rope_scaling={"rope_type": kind})
            for kind in ("linear", "llama3", "yarn")
        ),
        bad("factor is missing", rope_scaling={"rope_type": "dynamic"}),
        bad("factor must be a number above 0", rope_scaling={**YARN, "factor": -4}),
        bad("rope_type 'strange' is not one of", rope_scaling={**YARN, "rope_type": "strange"}),
        bad("rope_theta must be a number", rope_theta="10000"),
        bad("rope_theta must be a number", rope_scaling={"rope_type": "default", "rope_theta": "10000"}),
        bad("text_config must be an object", text_config=[1]),
        bad("tie_word_embeddings must be true or false", tie_word_embeddings="yes"),
    ],
)
def test_bad_configs_name_their_key(message: str, changes: dict[str, Any]) -> None:
    """One line that names the key and says what is wrong with it."""
    with pytest.raises(KvplanError) as caught:
        from_config({**LLAMA, **changes}, "m")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("timm_model_ids", ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_384"]),
        ("timm_override_act_layers", ["quick_gelu", None]),
        ("image_sizes", [384, 384]),
        ("use_fused_vision_backbone", False),
    ],
)
def test_openvla_has_one_pair_of_towers(key: str, value: object) -> None:
    """vLLM 0.32's class raises a ValueError for each, with its towers or without; the keys may be left out."""
    vla = {"architectures": ["OpenVLAForActionPrediction"], "text_config": {"vocab_size": 32064}}
    assert from_config(vla, "vla").vision is not None
    with pytest.raises(KvplanError, match=f"{key}: vLLM's OpenVLA supports only"):
        from_config({**vla, key: value}, "vla")


@pytest.mark.parametrize("shared", [6, 9, 10, 11])
def test_gemma_3n_keeps_layers_that_own_kv(shared: int) -> None:
    """Layers that share KV of a kind that no layer before them has would have no keys at all."""
    cases = json.loads(lzma.decompress((FIXTURES / "architectures_vllm_0.32.json.xz").read_bytes()))
    config = cases["Gemma3nForCausalLM"]["config"]
    assert from_config({**config, "num_kv_shared_layers": 5}, "g")
    said = f"num_kv_shared_layers {shared} of 10 layers: no layer before them is full_attention"
    with pytest.raises(KvplanError, match=said):
        from_config({**config, "num_kv_shared_layers": shared}, "g")


def test_files_that_are_no_configs(tmp_path: Path) -> None:
    """Not JSON, not an object, too deep, too large, not text, an empty folder, a name no file can have."""
    file = tmp_path / "config.json"
    for text, message in [
        ("{nope", "not JSON"),
        ("[1, 2]", "holds an object"),
        ("[" * 100_000, "nested too deeply"),
        (" " * (MAX_CONFIG_BYTES + 1), "is no model config"),
    ]:
        file.write_text(text)
        with pytest.raises(KvplanError, match=message):
            load_model(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KvplanError, match="not UTF-8"):
        load_model(file)
    with pytest.raises(KvplanError, match=r"has no config\.json"):
        load_model(tmp_path / "..")
    for name in ("x" * 5000, "a\0b", "./missing.json", ""):
        with pytest.raises(KvplanError):
            load_model(name)


def test_huge_numbers_are_bounded() -> None:
    """An integer of 5,000 digits is refused by Python's parser, and the refusal is ours."""
    with pytest.raises(KvplanError, match="thousands of digits"):
        parse_json('{"hidden_size": ' + "9" * 5000 + "}", "x")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from(["full_attention", "sliding_attention", "mamba", "E", "fp8", "yarn", "", "7"])
    | st.integers(0, 300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A bundled config with one to four keys (nested ones too) changed or removed."""
    config = raw(draw(st.sampled_from(NAMES)))
    for _ in range(draw(st.integers(1, 4))):
        section = config
        while nested := [k for k, v in section.items() if isinstance(v, dict) and v]:
            if draw(st.booleans()):
                break
            section = section[draw(st.sampled_from(sorted(nested)))]
        key = draw(st.sampled_from(sorted(section)))
        if draw(st.integers(0, 3)):
            section[key] = draw(JSON)
        else:
            del section[key]
        if not config:
            break
    return config


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_configs(), st.sampled_from([1, 2, 8]))
def test_mutated_configs_give_a_model_or_a_named_error(config: dict[str, Any], tp: int) -> None:
    """Whatever a config holds, the outcome is a model with countable weights, or one line of complaint."""
    complaint = ""
    try:
        model = from_config(config, "mutant")
        assert parameters(model) >= active_parameters(model) > 0
        assert heaviest_rank(model, tensor_parallel_size=tp, use_mtp=True).total > 0
    except KvplanError as error:
        complaint = str(error)
    assert "\n" not in complaint
    assert len(complaint) < 600


def test_recipes_models_load_by_name() -> None:
    """188 of the 190 that serve language models."""
    lines = (FIXTURES / "recipe_ids.txt").read_text().splitlines()
    ids = [line for line in lines if not line.startswith("#")]
    unknown = [name for name in ids if find_bundled(name) is None]
    assert sorted(unknown, key=str.casefold) == sorted(NOT_PLANNED, key=str.casefold)
    assert (len(ids) - len(unknown), len(ids)) == (188, 190)


@pytest.mark.parametrize("name", NOT_PLANNED)
def test_a_recipes_model_that_is_not_planned_says_why(name: str) -> None:
    """In one line, whichever way the name is written; what it points to is planned."""
    for written in (name, name.upper(), name.rpartition("/")[2]):
        with pytest.raises(KvplanError, match=f"^{name} is not planned: ") as caught:
            load_model(written)
        named = [word.strip(",;:.") for word in str(caught.value).split()[1:] if word.count("/") == 1]
        assert all(find_bundled(other) for other in named)


def test_ministral_3_has_no_window_unless_it_says_so() -> None:
    """transformers 5's `Ministral3Config` has none by default, `MistralConfig` 4,096."""
    names = ("mistralai/Ministral-3-8B-Instruct-2512", "mistralai/Mistral-Medium-3.5-128B")
    assert {layer.attention.window for name in names for layer in load_model(name).layers} == {0}
