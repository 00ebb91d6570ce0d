"""A plan as people read it, and as scripts do: text like the engine's own lines, and one fixed JSON document."""

from __future__ import annotations

import re

import kvplan
from kvplan.memory.answers import Plan, Span
from kvplan.memory.budget import Budget, Row
from kvplan.memory.demand import trace_blocks
from kvplan.memory.inverse import Option
from kvplan.memory.serve_command import shell_command, with_length
from kvplan.units import KiB, gib

SCHEMA_VERSION = 1


def plan_document(plan: Plan, options: tuple[Option, ...] = ()) -> dict[str, object]:
    """The document of `kvplan estimate --json`: the same keys whatever the answer, nulls for what is not known."""
    question = plan.question
    return {
        "schema_version": SCHEMA_VERSION,
        "kvplan_version": kvplan.__version__,
        "inputs": _inputs(plan),
        "fits": plan.fits,
        "fits_for_sure": plan.fits_for_sure,
        "limited_by": str(plan.limited_by),
        "reason": reason(plan),
        "longest_max_model_len": longest_len(plan),
        "memory": _memory(plan.budget),
        "memory_range": {f"{row.name}_bytes": [row.size.low, row.size.high] for row in plan.budget.rows},
        "kv": _kv(plan),
        "kv_range": {
            "cache_tokens": _ends(plan.cache_tokens),
            "max_concurrency": _ends(plan.max_concurrency),
        },
        "traces": _trace_facts(plan),
        "sources": {f"{row.name}_bytes": row.source for row in (plan.budget.total, *plan.budget.rows)}
        | {"model": question.model.source, "price_per_hour": "assumed: GPU table, or --price-per-hour"},
        "what_would_fit": [option.to_dict() for option in options],
        "serve_command": serve_line(plan),
    }


def reason(plan: Plan) -> str | None:
    """Why it does not fit, or None."""
    if plan.refusal:
        return plan.refusal.reason
    return None if plan.fits else plan.too_long or plan.shortfall


def longest_len(plan: Plan) -> int:
    """The longest max_model_len that starts: the asked one, or the engine's own estimate on a refusal."""
    return plan.refusal.max_model_len if plan.refusal else plan.max_model_len


def serve_line(plan: Plan) -> str:
    """The command that starts this plan, serving no longer a context than the stated lengths need."""
    question = plan.question
    args = question.args if plan.too_long else with_length(question.args, question.demand)
    return shell_command(question.model.name, args, question.engine.engine)


def _inputs(plan: Plan) -> dict[str, object]:
    question = plan.question
    return {
        "model": question.model.name,
        "gpu": question.gpu.name,
        "engine": str(question.engine),
        "entry_point": question.entry_point,
        "num_gpus": plan.args.num_gpus,
        "price_per_hour": question.gpu.price_per_hour * plan.args.num_gpus,
        "colocate": {role: model.name for role, model in question.colocate},
        **question.demand.model_dump(),
        **plan.args.model_dump(mode="json"),
        "max_model_len": plan.max_model_len,
        "kv_cache_dtype": plan.shape.kv_cache_dtype,
        "block_size": plan.shape.block_size,
    }


def _memory(budget: Budget) -> dict[str, int]:
    rows = {f"{row.name}_bytes": row.size.value for row in budget.rows}
    return {"total_bytes": budget.total.size.value, "budget_bytes": budget.budget_bytes, **rows}


def _kv(plan: Plan) -> dict[str, object]:
    """The engine's own figures; on a refusal those of the pool that there is."""
    shape = plan.shape
    started = plan.layout is not None
    blocks = trace_blocks(shape, plan.args, plan.trace_tokens, 0, 1)
    return {
        "bytes_per_token": bytes_per_token(plan),
        "bytes_per_sequence": blocks.alone * shape.bytes_per_block,
        "block_size": shape.block_size,
        "bytes_per_block": shape.bytes_per_block,
        "num_gpu_blocks": shape.num_blocks,
        "cache_tokens": plan.cache_tokens.value if started else shape.kv_cache_size_tokens,
        "max_concurrency": plan.max_concurrency.value if started else shape.max_concurrency,
        "blocks_per_request": shape.blocks_per_request,
    }


def bytes_per_token(plan: Plan) -> int:
    """KV bytes a token adds on one GPU while every attention layer still keeps it; states left out."""
    growing = [g for g in plan.shape.groups if g.kind != "state"]
    return sum(group.bytes_per_block // (group.block_size * group.num_shards) for group in growing)


def _trace_facts(plan: Plan) -> dict[str, object]:
    return {
        "asked": plan.question.demand.num_traces,
        "at_once": plan.num_traces,
        "in_kv_memory": int(plan.traces.value),
        "in_kv_memory_range": _ends(plan.traces),
        "tokens_each": plan.trace_tokens,
    }


def _ends(span: Span) -> list[float]:
    return [span.low, span.high]


def plan_text(plan: Plan, options: tuple[Option, ...] = ()) -> str:
    """The answer in the order an engine's log and then its user would tell it."""
    parts = [_memory_table(plan), _engine_lines(plan), _options_text(options), serve_line(plan)]
    return "\n\n".join(part for part in parts if part)


def _memory_table(plan: Plan) -> str:
    ranks = plan.args.num_gpus
    title = "Memory per GPU" + (f" (fullest of {ranks})" if ranks > 1 else "")
    lines = [f"{title:<35}GiB"]
    rows = [plan.budget.total, *(row for row in plan.budget.rows if row.size.value or row.name == "kv_pool")]
    return "\n".join([*lines, *(_row_line(plan, row) for row in rows)])


def _row_line(plan: Plan, row: Row) -> str:
    note = row.source
    if row.name == "kv_pool":
        note = f"{_small_bytes(bytes_per_token(plan))} per token, {note}"
    return f"  {row.label:<28}{gib(row.size.value):>8.2f}   {short_source(note)}"


def short_source(text: str, width: int = 88) -> str:
    """A source's first statement and its range; `--json` has the whole of it.

    >>> short_source("measured: start-up logs: V100 0.69 (0.18), RTX 4090 0.68 (0.19); agrees (0.50-0.95)", 40)
    'measured: start-up logs (0.50-0.95)'
    """
    if len(text) <= width:
        return text
    span = re.search(r" \([\d.,]+-[\d.,]+\)$", text)
    end = span.group() if span else ""
    for cut in (text.split("; ")[0], ": ".join(text.split(": ")[:2])):
        if len(cut.removesuffix(end) + end) <= width:
            break
    return cut.removesuffix(end) + end


def _small_bytes(num_bytes: int) -> str:
    kib = num_bytes / KiB
    return f"{kib:,.0f} KiB" if kib == int(kib) else f"{kib:,.1f} KiB"


def _engine_lines(plan: Plan) -> str:
    if plan.refusal:
        starts = plan.question.engine.engine == "sglang" and plan.refusal.max_model_len > 0
        return f"{'Falls short' if starts else 'Does not start'}: {plan.refusal.reason}."
    return "\n".join([*_log_lines(plan), _traces_line(plan)])


def _log_lines(plan: Plan) -> list[str]:
    """What the engine itself would log of its pool."""
    tokens, length = int(plan.cache_tokens.value), plan.max_model_len
    if plan.question.engine.engine == "sglang":
        return [f"max_total_num_tokens={tokens}, context_len={length}"]
    if plan.question.engine.engine == "tensorrt-llm":
        pool = gib(plan.budget.kv.size.value)
        return [f"Allocated {pool:.2f} GiB for max tokens in paged KV cache ({tokens})."]
    return [
        f"GPU KV cache size: {tokens:,} tokens",
        f"Maximum concurrency for {length:,} tokens per request: {plan.max_concurrency.value:.2f}x",
    ]


def _traces_line(plan: Plan) -> str:
    """What the engine's figures mean for traces of the expected lengths."""
    if plan.too_long:
        return f"Never served: {plan.too_long}."
    low, high = int(plan.traces.low), int(plan.traces.high)
    spread = f" ({low:,}-{high:,})" if low != high else ""
    held = f"{plan.num_traces:,} trace{'s' if plan.num_traces != 1 else ''} at once{spread}"
    held += f" over {plan.args.data_parallel_size} replicas" if plan.args.data_parallel_size > 1 else ""
    doubt = "" if plan.fits_for_sure or not plan.fits else " Not at the worst end of the overheads' range."
    return f"At the {_lengths(plan)}: {held}, limited by {plan.limited_by}{_waves(plan)}.{doubt}"


def _lengths(plan: Plan) -> str:
    demand = plan.question.demand
    if not demand.is_stated:
        return f"full {plan.trace_tokens:,} tokens"
    shared = ", prompt shared" if demand.num_samples > 1 and plan.args.enable_prefix_caching else ""
    if demand.input_len and demand.output_len:
        return f"expected {demand.input_len:,} + {demand.output_len:,} tokens{shared}"
    return f"expected {plan.trace_tokens:,} tokens{shared}"


def _waves(plan: Plan) -> str:
    asked, held = plan.question.demand.num_traces, plan.num_traces
    if asked <= 1 or not held:
        return ""
    if asked <= held:
        return f", so all {asked:,} run together"
    return f", so {asked:,} run in {-(-asked // held)} waves or preempt"


def _options_text(options: tuple[Option, ...]) -> str:
    if not options:
        return ""
    width = max(len(option.change) for option in options)
    return "\n".join(
        ["What would fit:", *(f"  {option.change:<{width}}  {option.effect}" for option in options)]
    )
