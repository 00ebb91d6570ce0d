"""What balancing experts over ranks takes beside their weights.

Source: vLLM 0.32 `distributed/eplb/eplb_state.py: add_model`.
"""

from __future__ import annotations

from kvplan.engines.eplb import eplb_config
from kvplan.engines.expert_balance import balances, max_ranks, redundant_experts
from kvplan.engines.flags import EngineArgs
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.engines.stages import PipelineStage
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import RankWeights

MOST_COPIES = 1024
"""Of one expert that vLLM's maps have room for."""


def eplb_bytes(model: ModelSpec, args: EngineArgs, stage: PipelineStage) -> int:
    """One layer's experts, which pass through a buffer, and maps and counts of every layer, on one rank of a stage.

    Maps have 8 bytes an entry, `MOST_COPIES` entries an expert; loads 4, kept for `window_size` steps.
    """
    if not balances(model, args):
        return 0
    window, rank = eplb_config(args.eplb_config).window_size, weights_of_stages(model, args)[stage.rank]
    redundant = redundant_experts(model, args)
    held = [layer.mlp.num_experts for layer in stage.layers(model) if layer.mlp.num_experts]
    growth = max_ranks(args) / args.data_parallel_size
    found = _buffer(rank) + _state(held, redundant, window, growth)
    if args.num_speculative_tokens and args.speculative_method == "mtp" and stage.is_last:
        drafting = [layer.mlp.num_experts for layer in model.mtp_layers if layer.mlp.num_experts]
        if drafting:
            found += _buffer(rank) + _state(drafting, redundant, window, growth)
    return found


def _buffer(rank: RankWeights) -> int:
    """One layer's routed experts on this rank."""
    return next((layer.expert * layer.num_experts for layer in rank.layers if layer.num_experts), 0)


def _state(num_experts: list[int], redundant: int, window: int, growth: float) -> int:
    """Maps and loads of the last step have room for as many ranks as there may be."""
    return sum(
        int((n + redundant) * growth) * (8 + 4) + (n + redundant) * 4 * window + n * (8 * MOST_COPIES + 8 + 8)
        for n in num_experts
    )
