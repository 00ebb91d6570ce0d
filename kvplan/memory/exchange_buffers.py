"""What the kernels between experts' ranks keep on each GPU: buffers of DeepEP and its like.

Only with experts spread over data-parallel ranks; all-gather and reduce-scatter, vLLM's default, keep nothing of their
own. Sources: vLLM 0.32 `distributed/device_communicators/all2all.py`, DeepEP `csrc/config.hpp`.
"""

from __future__ import annotations

from kvplan.engines.expert_balance import max_ranks
from kvplan.engines.flags import EngineArgs
from kvplan.engines.kernel_flags import BATCHED_EXCHANGES
from kvplan.engines.nodes import USUAL_GPUS, num_machines
from kvplan.ground.units import MiB, cdiv
from kvplan.models.spec import ModelSpec

ALIGNED = 128


def spreads_experts(model: ModelSpec, args: EngineArgs) -> bool:
    """Whether experts' ranks exchange tokens by kernels of their own."""
    return model.is_moe and args.enable_expert_parallel and args.data_parallel_size > 1


def exchange_bytes(model: ModelSpec, args: EngineArgs) -> int:
    """Bytes of such buffers on one rank; 0 for kernels whose buffers no public source tells."""
    if not spreads_experts(model, args):
        return 0
    nvlink = args.environment.deepep_buffer_size_mb * MiB
    if args.all2all_backend == "deepep_high_throughput":
        inside = args.environment.deepep_high_throughput_force_intra_node or not _leaves_the_machine(args)
        return nvlink if inside else 2 * nvlink
    if args.all2all_backend not in BATCHED_EXCHANGES:
        return 0
    nvlink = nvlink if args.all2all_backend == "deepep_low_latency" else 0
    experts = max(layer.mlp.num_experts for layer in model.layers)
    if args.all2all_backend == "nixl_ep":  # buffers for all ranks that there may be
        experts = experts * max_ranks(args) // args.data_parallel_size
    return nvlink + low_latency_bytes(args.max_num_batched_tokens or 0, model.hidden_size, experts)


def _leaves_the_machine(args: EngineArgs) -> bool:
    """Whether experts' ranks lie on several machines: by their flags, or for being more than a usual machine's."""
    ranks = args.tensor_parallel_size * args.data_parallel_size
    return num_machines(args) > 1 or ranks > USUAL_GPUS


def low_latency_bytes(num_tokens: int, hidden: int, num_experts: int) -> int:
    """DeepEP's two buffers, each to send and to receive so many tokens for every expert.

    2 x (send + receive + flags); a message to an expert is 16 bytes and the hidden state in 16 bits, one back the state
    and 4 bytes for each 128 of it. With 128 tokens, 7,168 and 288 experts DeepEP printed 2,116 MB when a message back
    had 16 bytes instead.

    >>> round(low_latency_bytes(128, 7168, 288) / 1e6)
    2147
    """
    there, back = 16 + 2 * hidden, 4 * (hidden // 128) + 2 * hidden
    send = max(num_tokens * there, num_experts * num_tokens * back)
    received = num_experts * num_tokens * max(there, back)
    flags = ALIGNED * cdiv(4 * num_experts, ALIGNED)
    total = 2 * (send + received + flags)
    return ALIGNED * (total // ALIGNED + 1)


def batched_workspace(model: ModelSpec, args: EngineArgs) -> int:
    """Bytes of the experts' shared workspace where each has rows of its own for every rank's tokens; 0 elsewhere.

    [experts of the rank, tokens x ranks, max(hidden, gate and up)] and [..., intermediate], in 16 bits. Source: vLLM
    0.32 `fused_moe/experts/batched_deep_gemm_moe.py: workspace_shapes`.
    """
    if not spreads_experts(model, args) or args.all2all_backend not in BATCHED_EXCHANGES:
        return 0
    ranks = args.tensor_parallel_size * args.data_parallel_size
    rows = (args.max_num_batched_tokens or 0) * args.data_parallel_size
    widest = 0
    for mlp in {layer.mlp for layer in model.layers if layer.mlp.num_experts}:
        own = cdiv(mlp.num_experts, ranks)
        gate_up = (mlp.num_matrices - 1) * mlp.intermediate_size
        width = max(mlp.latent_size or model.hidden_size, gate_up) + mlp.intermediate_size
        widest = max(widest, int(own * rows * width))
    return 2 * widest
