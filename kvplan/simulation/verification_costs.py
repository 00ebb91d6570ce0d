"""What vLLM's start-up would measure of verifying and drafting, by the deployment's own step times.

vLLM times dummy steps: of each CUDA graph's tokens and beyond, as many requests as there may be, each behind a context
that a variable states; the target's forward pass and the drafter's, sampling left out. Source: vLLM 0.32
`v1/worker/gpu/model_runner.py: capture_model, _dummy_run`.
"""

from __future__ import annotations

from kvplan.engines.cuda_graphs import find_graphs
from kvplan.engines.flags import EngineVersion, ResolvedArgs
from kvplan.formulas.verification import cost_table, most_logits, profiled_sizes
from kvplan.ground.gpu import GpuSpec
from kvplan.models.spec import ModelSpec
from kvplan.schedulers.vllm.adaptive_verification import VerificationCosts
from kvplan.timing.step import DraftedStepTime, StepShape, StepTime, without_sampling


def verification_costs(
    time: StepTime,
    model: ModelSpec,
    gpu: GpuSpec,
    args: ResolvedArgs,
    engine: EngineVersion,
    max_model_len: int,
) -> VerificationCosts:
    """Cost tables of one engine, in ticks."""
    graphs = find_graphs(args, model, gpu.compute_capability, version=engine)
    whole = max(graphs.own_decode_sizes, default=0)
    captured = sorted({*graphs.own_decode_sizes, *graphs.other_sizes})
    drafted = time if isinstance(time, DraftedStepTime) else None
    forward = without_sampling(drafted.verify if drafted else time)
    draft: dict[int, float] = {}
    verify: list[tuple[int, float]] = []
    for size in profiled_sizes(captured, args.max_num_batched_tokens):
        requests, tokens = _dummy_step(size, args)
        each = -(-tokens // requests)
        context = max(
            0, min(args.environment.adaptive_verification_profile_context_len, max_model_len - each)
        )
        shape = StepShape(tokens, requests, requests * context + tokens)
        verify.append((tokens, float(forward.ticks(shape))))
        if size <= whole:
            draft[requests] = float(time.ticks(shape) - drafted.verify.ticks(shape)) if drafted else 0.0
    limit = captured[-1] if captured else 0
    return VerificationCosts(
        cost_table(sorted(draft.items()), args.max_num_seqs, limit),
        cost_table(verify, args.max_num_batched_tokens, limit),
        most_logits(model.vocab_size),
    )


def _dummy_step(size: int, args: ResolvedArgs) -> tuple[int, int]:
    """Requests and tokens of a dummy step: drafting must have its slots too."""
    method, most, drafts = args.speculative_method, args.max_num_batched_tokens, args.num_speculative_tokens
    queries = {"dflash": 1 + drafts, "dspark": drafts}.get(method, 1)
    requests = max(1, min(size, args.max_num_seqs, most // queries))
    return requests, min(size, most - requests * (method == "draft_model"))
