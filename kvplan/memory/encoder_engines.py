"""Engines of a tower alone and engines beside them: what vLLM refuses, and what those keep (`--ec-transfer-config`,
`--mm-encoder-only`, `--mm-processor-device`).

Source: vLLM 0.32 `config/vllm.py: _resolve_mm_encoder_only`, `config/multimodal.py: validate_mm_processor_device`,
`v1/worker/mm_encoder_model_runner.py`, `mooncake/config.py: from_vllm_config`.
"""

from __future__ import annotations

import json

from kvplan.engines.ec_transfer import ec_transfer
from kvplan.engines.flags import EngineArgs, EngineVersion, ResolvedArgs
from kvplan.engines.rank_weights import rank_weights
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import GpuSpec
from kvplan.ground.units import gib
from kvplan.memory.tower_attention import heads_width
from kvplan.models.spec import ModelSpec


def check_encoder(model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec, engine: EngineVersion) -> None:
    """Refuse engines of the encoder alone, which keep no KV, and what vLLM refuses of the others.

    Raises:
        KvplanError: for the former with what they take instead.
    """
    if engine.engine != "vllm":
        return
    told = ec_transfer(args.ec_transfer_config)
    if told.encodes_only and model.vision is None:
        raise KvplanError(
            f"--ec-transfer-config: an ec_producer needs a multimodal model; {model.name} is none"
        )
    _check_connector(args)
    if model.vision is None:
        return
    if told.encodes_only or args.mm_encoder_only:
        _refuse_alone(model, args, gpu)
    device = _processor_device(args)
    if device.startswith("cuda"):
        raise KvplanError(
            f"--mm-processor-device {device[:20]}: this engine runs the language model too, and vLLM makes items ready "
            "on the GPU of an encoder's own engine alone (ec_producer); leave it out"
        )


def _check_connector(args: ResolvedArgs) -> None:
    told = ec_transfer(args.ec_transfer_config)
    if told.ec_connector == "ECCPUConnector" and args.environment.use_v2_model_runner is False:
        raise KvplanError("--ec-transfer-config: ECCPUConnector needs vLLM's second model runner")
    if told.ec_connector != "ECMooncakeConnector" or told.ec_role == "ec_consumer":
        return
    for name in ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"):
        if getattr(args, name) > 1:
            raise KvplanError(f"--ec-transfer-config: ECMooncakeConnector's producers require {name} 1")


def _refuse_alone(model: ModelSpec, args: ResolvedArgs, gpu: GpuSpec) -> None:
    from kvplan.memory.tower_profile import largest_item, tower_bytes

    assert model.vision is not None
    said = "--mm-encoder-only" if args.mm_encoder_only else "--ec-transfer-config ec_producer"
    if args.data_parallel_size > 1:
        raise KvplanError(f"{said}: an engine of the encoder alone does not support --data-parallel-size")
    text = args.model_copy(update={"language_model_only": True})
    weights = rank_weights(model, args) - rank_weights(model, text)
    run, item = (
        tower_bytes(model.vision, args, heads_width(model, args, gpu)),
        largest_item(model.vision, args),
    )
    peak = "" if run is None else f", a batch of its largest items about {gib(run):.2f}"
    cached = 2 * model.hidden_size * max(args.max_num_batched_tokens, item.tokens if item else 0)
    raise KvplanError(
        f"{said}: an engine of the encoder alone keeps no KV, so there is no pool to plan; of each GPU's"
        f" {gib(gpu.total_bytes):.2f} GiB the tower's weights take {gib(weights):.2f}{peak}, its cache of embeddings"
        f" {gib(cached):.2f}"
    )


def _processor_device(args: EngineArgs) -> str:
    """Where items are made ready: `device` of --mm-processor-kwargs comes first."""
    kwargs = json.loads(args.mm_processor_kwargs) if args.mm_processor_kwargs else {}
    device = kwargs.get("device")
    return str(device) if device is not None else args.mm_processor_device
