"""Engines that embed or score: `--runner`, `--convert`, `--pooler-config`, and what they change of an engine's choices.

Source: vLLM 0.32 `config/model.py` (`_get_runner_type`, `_get_convert_type`, `is_chunked_prefill_supported`),
`config/vllm.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from kvplan.engines.flags import EngineArgs
from kvplan.engines.pooler_config import Convert, Sequences, Tokens, pooler_config
from kvplan.ground.errors import KvplanError
from kvplan.models.pooling import as_pooled
from kvplan.models.spec import ModelSpec

BY_STEPS = ("Qwen2ForProcessRewardModel",)
"""Classes that give the tokens at the ends of steps by default (`default_pooling_type`)."""


class Pooling(NamedTuple):
    """How an engine pools."""

    convert: Literal["none", "embed", "classify"]
    sequences: Sequences
    tokens: Tokens

    @property
    def splits_prompts(self) -> bool:
        """Whether prompts may run over several steps and be found in the prefix cache."""
        return self.sequences == "LAST" and self.tokens != "STEP"

    def __str__(self) -> str:
        """E.g. classifies (LAST of the tokens, LAST of a sequence)."""
        does = {"none": "pools", "embed": "embeds", "classify": "classifies"}[self.convert]
        return f"{does} ({self.tokens} of the tokens, {self.sequences} of a sequence)"


def _converted(model: ModelSpec, args: EngineArgs) -> Convert | None:
    """What the class is converted to, `none` for one that pools by itself; None where it generates."""
    runner = args.runner
    if runner == "draft":
        raise KvplanError(
            "--runner draft: an engine of it serves nothing; what drafts is named by --speculative-config"
        )
    if runner == "auto":
        runner = "pooling" if model.pools or args.convert in ("embed", "classify") else "generate"
    if runner == "generate":
        if model.pools == "own":
            raise KvplanError(
                f"--runner generate: {model.name} does not generate; leave it out, or --runner pooling"
            )
        if args.convert in ("embed", "classify"):
            raise KvplanError(f"--convert {args.convert}: with --runner pooling alone, or auto")
        return None
    if model.pools == "own":
        return "none"
    if args.convert == "none":
        raise KvplanError(f"--convert none: {model.name} generates; --convert embed or classify to pool")
    return args.convert if args.convert != "auto" else "classify" if model.pools == "classify" else "embed"


def find_pooling(model: ModelSpec, args: EngineArgs) -> Pooling | None:
    """How vLLM serves the model by pooling; None where it generates.

    Raises KvplanError for what vLLM refuses: a runner or a conversion that the class does not have.
    """
    convert = _converted(model, args)
    if convert is None:
        return None
    told = pooler_config(args.pooler_config)
    kind = told.pooling_type
    sequences = told.seq_pooling_type or (kind if kind in ("CLS", "LAST", "MEAN") else None)
    tokens = told.tok_pooling_type or (kind if kind in ("ALL", "STEP") else None)
    usual = "STEP" if model.architecture in BY_STEPS else "ALL"
    return Pooling(convert, sequences or model.pooled_by or "LAST", tokens or usual)  # type: ignore[arg-type]


def as_served(model: ModelSpec, args: EngineArgs) -> ModelSpec:
    """The model with the modules that vLLM loads for generating, embedding or classifying."""
    convert = _converted(model, args)
    return as_pooled(model, convert if convert in ("embed", "classify") else "")


def pooling_defaults(model: ModelSpec, args: EngineArgs) -> Mapping[str, Any]:
    """What vLLM decides otherwise where it pools: async scheduling off, whole prompts where tokens of all count."""
    pooling = find_pooling(model, args)
    if pooling is None:
        return {}
    usual: dict[str, Any] = {
        "async_scheduling": False,
        "enable_chunked_prefill": pooling.splits_prompts,
        "enable_prefix_caching": pooling.splits_prompts,
    }
    return {name: value for name, value in usual.items() if getattr(args, name) is None} | {
        "runner": "pooling"
    }
