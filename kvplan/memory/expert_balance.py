"""What balancing experts over ranks takes beside their weights.

Source: vLLM 0.32 `distributed/eplb/eplb_state.py: add_model`.
"""

from __future__ import annotations

from kvplan.engines.eplb import eplb_config
from kvplan.engines.expert_balance import balances, redundant_experts
from kvplan.engines.flags import EngineArgs
from kvplan.engines.rank_weights import weights_of_stages
from kvplan.models.spec import ModelSpec
from kvplan.models.weights import RankWeights, heaviest

MOST_COPIES = 1024
"""Of one expert that vLLM's maps have room for."""


def eplb_bytes(model: ModelSpec, args: EngineArgs) -> int:
    """One layer's experts, which pass through a buffer, and maps and counts of every layer, on the fullest rank.

    Maps have 8 bytes an entry, `MOST_COPIES` entries an expert; loads 4, kept for `window_size` steps.
    """
    if not balances(model, args):
        return 0
    window, rank = eplb_config(args.eplb_config).window_size, heaviest(weights_of_stages(model, args))
    redundant = redundant_experts(model, args)
    own = [layer.mlp.num_experts for layer in model.layers if layer.mlp.num_experts]
    stages = args.pipeline_parallel_size
    held = own[: -(-len(own) // stages)]
    found = _buffer(rank) + _state(held, redundant, window)
    if args.num_speculative_tokens and args.speculative_method == "mtp":
        drafting = [layer.mlp.num_experts for layer in model.mtp_layers if layer.mlp.num_experts]
        if drafting:
            found += _buffer(rank) + _state(drafting, redundant, window)
    return found


def _buffer(rank: RankWeights) -> int:
    """One layer's routed experts on this rank."""
    return next((layer.expert * layer.num_experts for layer in rank.layers if layer.num_experts), 0)


def _state(num_experts: list[int], redundant: int, window: int) -> int:
    return sum((n + redundant) * (8 + 4 + 4 * window) + n * (8 * MOST_COPIES + 8 + 8) for n in num_experts)
