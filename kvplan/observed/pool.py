"""The KV pool that a log tells, to the block: the printed GiB, narrowed by the tokens or blocks it became."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvplan.ground.errors import KvplanError
from kvplan.ground.units import GiB
from kvplan.memory.answers import Plan
from kvplan.memory.forward import answer
from kvplan.memory.layout import Layout
from kvplan.observed.startup import StartupLog

ROUNDING = 0.005
"""GiB that two printed decimals leave open."""


_PARTS = ("kv_gib", "k_gib", "v_gib", "conv_gib", "ssm_gib")
"""Printed sizes that make up a pool."""


@dataclass(frozen=True, slots=True)
class PrintedPool:
    """What the log says of its pool, and what kvplan makes of it."""

    printed_gib: float | None
    """As printed, or the sum of printed K and V; None where only tokens or blocks are."""
    num_bytes: int | None
    """The pool to the block; None where the log tells none."""
    low: Layout | None
    """Layout of the smallest pool that prints the same GiB (or of `num_bytes`); None if it is refused."""
    high: Layout | None
    """Layout of the largest."""
    states_pinned: bool = False
    """Whether the states take what a flag says, not their usual share (SGLang's --max-mamba-cache-size)."""

    def holds(self, name: str, printed: float) -> bool:
        """Whether a printed figure lies between those of the smallest and the largest such pool."""
        if self.low is None or self.high is None:
            return False
        low, high = (figure(layout, name) for layout in (self.low, self.high))
        slack = 0.005 if name == "max_concurrency" else 0
        return low - slack <= printed <= high + slack


def figure(layout: Layout, name: str) -> float:
    """num_gpu_blocks, cache_tokens or max_concurrency of a layout."""
    if name == "num_gpu_blocks":
        return layout.num_blocks
    if name == "max_concurrency":
        return layout.max_concurrency
    return layout.kv_cache_size_tokens


def pool_gib(log: StartupLog) -> float | None:
    """The printed size of the pool; SGLang prints K, V and states apart."""
    states = log.figures.get("conv_gib", 0.0) + log.figures.get("ssm_gib", 0.0)
    if "kv_gib" in log.figures:
        return log.figures["kv_gib"] + states
    if "k_gib" in log.figures and "v_gib" in log.figures:
        return log.figures["k_gib"] + log.figures["v_gib"] + states
    if "kv_bytes" in log.figures:
        return log.figures["kv_bytes"] / GiB
    return None


def printed_pool(log: StartupLog, plan: Plan) -> PrintedPool:
    """The pool of the log, laid out by the plan's model and flags."""
    size = pool_gib(log)
    exact = _exact(log, plan, size)
    if size is None:
        layout = layout_of(plan, exact) if exact else None
        return PrintedPool(None, exact, layout, layout)
    off = 0 if "kv_bytes" in log.figures else ROUNDING * sum(name in log.figures for name in _PARTS)
    return replace(pool_within(plan, size, off), num_bytes=exact if exact is not None else int(size * GiB))


def pinned_pool(log: StartupLog, plan: Plan) -> PrintedPool | None:
    """SGLang's K and V alone, if they become the printed tokens: a flag pins its states, printed apart."""
    states = log.figures.get("conv_gib", 0.0) + log.figures.get("ssm_gib", 0.0)
    size = pool_gib(log)
    if log.engine != "sglang" or not states or size is None:
        return None
    off = ROUNDING * sum(name in log.figures for name in ("kv_gib", "k_gib", "v_gib"))
    ends = [int((size - states + end) * GiB) // plan.shape.bytes_per_block for end in (-off, off)]
    low, high = (replace(plan.shape, num_blocks=max(0, blocks)) for blocks in ends)
    pool = PrintedPool(size, None, low, high, states_pinned=True)
    return pool if pool.holds("cache_tokens", log.figures.get("cache_tokens", 0.0)) else None


def pool_within(plan: Plan, size: float, off: float) -> PrintedPool:
    """A pool of `size` GiB give or take `off`, laid out by the plan."""
    low, high = (layout_of(plan, int((size + end) * GiB)) for end in (-off, off))
    return PrintedPool(size, None, low, high)


def layout_of(plan: Plan, num_bytes: int) -> Layout | None:
    """The plan's layout with a pool of `num_bytes` on every stage; of any length where it is refused."""
    if num_bytes <= 0:
        return None
    update = {"kv_cache_memory_bytes": num_bytes, "num_gpu_blocks_override": None}
    question = replace(plan.question, args=plan.question.args.model_copy(update=update))
    try:
        return answer(question).shape
    except KvplanError:
        return None


def _exact(log: StartupLog, plan: Plan, size: float | None) -> int | None:
    """The smallest whole number of blocks whose layout prints the log's blocks or tokens; None if none does."""
    name = next((n for n in ("num_gpu_blocks", "cache_tokens") if log.figures.get(n)), None)
    if name is None:
        return None
    wanted, page = log.figures[name], plan.shape.most_bytes_per_block
    low, high = _ends(plan, size)
    if low < 1:
        return None
    while low < high:
        middle = (low + high) // 2
        layout = layout_of(plan, middle * page)
        if layout is not None and figure(layout, name) >= wanted:
            high = middle
        else:
            low = middle + 1
    layout = layout_of(plan, low * page)
    got = 0 if layout is None else figure(layout, name)
    rounded = log.engine == "tensorrt-llm" and name == "cache_tokens"  # printed before rounding up to blocks
    return low * page if got == wanted or (rounded and 0 <= got - wanted < plan.shape.block_size) else None


def _ends(plan: Plan, size: float | None) -> tuple[int, int]:
    """Fewest and most blocks that the printed GiB leave open; any that the card holds where none are printed."""
    page = plan.shape.most_bytes_per_block
    if size is None:
        return 1, plan.budget.total.size.value // page
    off = 5 * ROUNDING
    return int((size - off) * GiB) // page, int((size + off) * GiB) // page + 1
