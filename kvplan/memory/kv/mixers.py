"""The parts of a model that remember, each with its pipeline stage, KV format and attention backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from kvplan.engines.drafting import check_layers
from kvplan.engines.flags import EngineArgs
from kvplan.engines.kernel_flags import attention_config
from kvplan.engines.speculative_config import speculation
from kvplan.formulas.capacity import kv_heads_per_rank
from kvplan.ground.errors import KvplanError
from kvplan.memory.kv.backends import INDEXER, Backend, Capability, LayerNeeds, select_backend
from kvplan.memory.kv.checks import check_rings, check_sharding, model_dtype, resolve_kv_dtype
from kvplan.memory.kv.formats import stored_format
from kvplan.memory.kv.versions import Rules
from kvplan.models.names import NO_PIPELINE
from kvplan.models.spec import AttentionKind, AttentionSpec, LayerSpec, ModelSpec
from kvplan.models.weights import stage_spans


@dataclass(frozen=True, slots=True)
class LayoutSetup:
    """A model and flags, with what start-up decides first."""

    model: ModelSpec
    args: EngineArgs
    """With the KV dtype resolved."""
    capability: Capability
    dtype: str
    """Of the model's activations."""
    skipped: frozenset[str]
    """Layers that keep the model's dtype: numbers, or `sliding_window`."""
    rules: Rules

    @classmethod
    def of(cls, model: ModelSpec, args: EngineArgs, capability: Capability, rules: Rules) -> LayoutSetup:
        """Check the parallel sizes and resolve the KV dtype.

        Raises:
            KvplanError: what the engine refuses.
        """
        check_sharding(model, args)
        check_rings(model, args)
        if (stages := args.pipeline_parallel_size) > 1 and model.architecture in NO_PIPELINE:
            raise KvplanError(
                f"pipeline_parallel_size {stages}: vLLM's {model.architecture} has no pipeline stages"
            )
        args = args.model_copy(update={"kv_cache_dtype": resolve_kv_dtype(model, args, capability)})
        return cls(model, args, capability, model_dtype(model, args), _skipped_layers(model, args), rules)

    @property
    def tp(self) -> int:
        """Tensor-parallel ranks."""
        return self.args.tensor_parallel_size


@dataclass(frozen=True, slots=True)
class Mixer:
    """One part of a layer that remembers."""

    spec: AttentionSpec
    stage: int
    kv_format: str = "auto"
    backend: Backend | None = None
    """None for states."""
    drafts: bool = False
    """Whether it drafts: keys of --speculative-config may say its format and kernels."""


def _skipped_layers(model: ModelSpec, args: EngineArgs) -> frozenset[str]:
    """The user's layers, and TurboQuant's own: the first and last two of a model without states."""
    skipped = set(args.kv_cache_dtype_skip_layers)
    if args.kv_cache_dtype.startswith("turboquant_") and not model.is_hybrid:
        n = len(model.layers)
        edge = min(2, n // 2)
        skipped |= {str(i) for i in (*range(edge), *range(n - edge, n))}
    return frozenset(skipped)


def find_mixers(setup: LayoutSetup, draft: ModelSpec | None = None) -> list[Mixer]:
    """Return every part that owns KV, in the order the engine builds them; drafting layers last, on the last stage.

    Raises:
        KvplanError: a model without the layers to draft with, or a layer that no backend takes.
    """
    num_stages = setup.args.pipeline_parallel_size
    spans = stage_spans(len(setup.model.layers), num_stages, setup.args.environment.pp_layer_partition)
    stages = [stage for stage, span in enumerate(spans) for _ in range(*span)]
    found = [
        m
        for i, (layer, s) in enumerate(zip(setup.model.layers, stages, strict=True))
        for m in _of(setup, layer, i, s)
    ]
    first, drafting = _drafting(setup, draft)
    last, kept = num_stages - 1, _draft_kv_dtype(setup)
    found += [m for i, layer in enumerate(drafting, first) for m in _of(setup, layer, i, last, kept)]
    if setup.args.kv_cache_dtype.startswith("turboquant_") and any(
        layer.beside for layer in setup.model.layers
    ):
        raise KvplanError("TurboQuant does not find the attention layers of a model with states beside them")
    return _choose_backends(setup, found)


def _draft_kv_dtype(setup: LayoutSetup) -> str:
    """Of what drafts: stated, or the target's."""
    told = speculation(setup.args.speculative_config).kv_cache_dtype
    if told is None:
        return setup.args.kv_cache_dtype
    return resolve_kv_dtype(
        setup.model, setup.args.model_copy(update={"kv_cache_dtype": told}), setup.capability
    )


def _of(setup: LayoutSetup, layer: LayerSpec, index: int, stage: int, drafts_in: str = "") -> list[Mixer]:
    """`drafts_in`: the KV dtype of a layer that drafts."""
    made, dtype = [], drafts_in or setup.args.kv_cache_dtype
    for spec in layer.mixers:
        windowed = spec.kind is AttentionKind.SLIDING and "sliding_window" in setup.skipped
        kept = windowed or str(index) in setup.skipped
        if spec.kind is not AttentionKind.NONE and spec.kv_shared_with is None:
            made.append(Mixer(spec, stage, "auto" if kept else dtype, drafts=bool(drafts_in)))
    return made


def _drafting(setup: LayoutSetup, draft: ModelSpec | None) -> tuple[int, Sequence[LayerSpec]]:
    """The layers that draft, and the number of the first one."""
    model, args = setup.model, setup.args
    if not args.num_speculative_tokens or args.speculative_method in WITHOUT_KV:
        return 0, ()
    if draft is not None or args.speculative_method not in ("mtp", "dspark"):
        return 0, draft.layers if draft else ()
    built = model.drafting_by(args.speculative_method, args.num_speculative_tokens)
    check_layers(model, args.speculative_method)
    return 0 if built.mtp.numbered_anew else len(model.layers), built.mtp_layers


WITHOUT_KV = ("ngram", "ngram_gpu", "suffix", "medusa", "custom_class")
"""Methods that draft without layers that remember."""


def _choose_backends(setup: LayoutSetup, mixers: Sequence[Mixer]) -> list[Mixer]:
    """Give every attention its backend, and the format that backend stores."""
    forced = _forced_backend(setup)
    known: dict[Mixer, tuple[Backend, str]] = {}
    chosen = []
    for m in mixers:
        if m.spec.kind is not AttentionKind.STATE:
            key = replace(m, stage=0)
            if key not in known:
                known[key] = _choose_backend(setup, m, _draft_backend(setup, forced) if m.drafts else forced)
            m = replace(m, backend=known[key][0], kv_format=known[key][1])
        chosen.append(m)
    return chosen


def _choose_backend(setup: LayoutSetup, m: Mixer, forced: str | None) -> tuple[Backend, str]:
    backend = select_backend(setup.capability, _needs(setup, m), forced)
    if m.kv_format not in backend.kv_dtypes:
        raise KvplanError(
            f"chunked attention cannot skip layers under kv_cache_dtype {setup.args.kv_cache_dtype}"
        )
    return backend, stored_format(backend, m.kv_format)


def _draft_backend(setup: LayoutSetup, forced: str | None) -> str | None:
    """The kernels that --speculative-config states for what drafts; a model beside always takes the target's."""
    told, method = (
        speculation(setup.args.speculative_config).attention_backend,
        setup.args.speculative_method,
    )
    if method == "draft_model" or (told or "auto").casefold() == "auto":
        return None if method in ("dflash", "dspark") and setup.model.dspark is None else forced
    return str(told).upper()


MIXED_HEADS = ("Gemma4", "DiffusionGemma")
"""Architectures whose heads are of two sizes."""


def _forced_backend(setup: LayoutSetup) -> str | None:
    """Gemma 4 mixes head sizes that FlashAttention 3 cannot serve: all its layers go to Triton."""
    model = setup.model
    if (setup.args.attention_backend or "").startswith("ROCM_"):
        return None  # ROCm's kernels are laid out as the default's
    if setup.args.attention_backend is None and model.architecture.startswith(MIXED_HEADS):
        head_dims = {layer.attention.head_dim for layer in model.layers}
        return "TRITON_ATTN" if len(head_dims) > 1 else None
    return setup.args.attention_backend


def _needs(setup: LayoutSetup, m: Mixer) -> LayerNeeds:
    spec, args = m.spec, setup.args
    compressed = spec.kind is AttentionKind.COMPRESSED
    is_mla = spec.is_latent or compressed
    return LayerNeeds(
        is_compressed=compressed,
        shares_latents=spec.shares_latents,
        has_long_rows=spec.latent_row > 0,
        head_size=spec.kv_lora_rank + spec.qk_rope_head_dim if spec.kv_lora_rank else spec.head_dim,
        # chunked attention picks its kernel before it learns that it is skipped from quantisation
        kv_dtype=args.kv_cache_dtype if spec.kind is AttentionKind.CHUNKED else m.kv_format,
        num_heads=spec.num_heads // setup.tp,
        num_kv_heads=1 if is_mla else int(kv_heads_per_rank(spec.num_kv_heads, setup.tp)),
        dtype=setup.dtype,
        block_size=args.block_size,
        is_mla=is_mla,
        is_sparse=(spec.index_topk > 0 and not spec.ring_bytes) or compressed,
        has_sinks=spec.sinks,
        has_window=spec.kind is AttentionKind.SLIDING,
        is_cross=spec.kind is AttentionKind.CROSS,
        dcp=args.decode_context_parallel_size,
        v_head_size=spec.v_head_dim,
        qk_nope_head_dim=spec.qk_nope_head_dim,
        qk_rope_head_dim=spec.qk_rope_head_dim,
        kv_lora_rank=spec.kv_lora_rank,
        index_topk=spec.index_topk,
        trims_drafts=speculation(args.speculative_config).enable_adaptive_verification,
        batch_invariant=args.environment.batch_invariant,
        flash_version=attention_config(args.attention_config).flash_attn_version or 0,
    )


def distinct_backends(mixers: Sequence[Mixer]) -> list[Backend]:
    """Return the attention backends in use, in layer order; a sparse layer's indexer comes before its attention."""
    found: dict[str, Backend] = {}
    for m in mixers:
        if m.backend and m.spec.index_head_dim and not m.spec.ring_bytes:
            found.setdefault(INDEXER.name, INDEXER)
        if m.backend:
            found.setdefault(m.backend.name, m.backend)
    return list(found.values())
