"""How many requests one CPU second simulates: the whole `simulate()` call, prefix caching, chunked prefill, records.

Reasoning: prompts of median 512 and answers of median 6,000 tokens on a card that holds 128 of them at once (ample) or
a third of that (tight: about five preemptions a request). The naive loop below, with an event per step and a request
at a time, is the yardstick: it has no prefix cache, no chunks and no records, and is still paid per step and request.
Rows with drafts (seven of ten right), several groups, SGLang's scheduler or TensorRT-LLM's rules have the same
simulation, step by step, as theirs; so have those whose prompts share a system prompt of 500 of 512 tokens, which leap
by visits, as those with both drafts and groups do.

    python benchmarks/bench_simulate.py                  all rows, 5,000 requests each
    python benchmarks/bench_simulate.py ample 100000     one row; the peak memory is then that row's
    python benchmarks/bench_simulate.py ample 1000000 --no-records
"""

from __future__ import annotations

import argparse
import resource
from collections import deque
from dataclasses import dataclass
from time import process_time
from typing import Any

from kvplan.ground.units import TICKS_PER_S
from kvplan.scenario.schema import Scenario, SGLangFlags, parse_scenario
from kvplan.schedulers.leap import scheduler
from kvplan.schedulers.vllm.config import BatchWait, EngineConfig, KVCacheGroup
from kvplan.simulation.deploy import Setup, StatedStepTime
from kvplan.simulation.result import Result
from kvplan.simulation.simulator import simulate
from kvplan.workload.load import draw_load

STEP = {"fixed_us": 8350, "per_sequence_us": 20, "per_context_token_ns": 67.7, "per_prefill_token_us": 49.5}
"""Llama-3-8B in bf16 on an A100-80GB, from its data sheet."""


@dataclass(frozen=True)
class Row:
    """One case: how full the card is, and how long the answers are."""

    num_blocks: int
    rate: float
    answer: int
    is_async: bool = False
    drafts: int = 0
    block_size: int = 16
    groups: tuple[KVCacheGroup, ...] = ()
    shared: int = 0
    """Tokens of a system prompt; prompts have 512 then."""
    sglang: SGLangFlags | None = None
    """SGLang's scheduler; its pages hold `block_size` tokens."""
    flags: tuple[tuple[str, Any], ...] = ()
    """Other fields of `EngineConfig`."""

    @property
    def is_stepped(self) -> bool:
        """Whether its yardstick is itself, step by step."""
        return bool(self.drafts or self.groups or self.sglang or self.flags)


FULL = KVCacheGroup()
GPT_OSS = (KVCacheGroup(kind="sliding_window", window=128), FULL)
GEMMA_3 = (KVCacheGroup(kind="sliding_window", window=1024, repeat=6), FULL)
QWEN3_NEXT = (KVCacheGroup(kind="mamba", block_size=272, repeat=3), KVCacheGroup(block_size=272))
LLAMA_4 = (KVCacheGroup(kind="chunked_local", chunk=8192, repeat=3), FULL)
WAIT = BatchWait(timeout_iters=20, max_tokens_ratio=0.5)
ROWS = {
    "ample": Row(26_600, 0.14, 6000),
    "ample, async": Row(26_600, 0.14, 6000, is_async=True),
    "tight": Row(7_700, 1.0, 6000),
    "tight, async": Row(7_700, 1.0, 6000, is_async=True),
    "chat": Row(26_600, 3.0, 270),
    "3 drafts": Row(26_600, 0.3, 6000, drafts=3),
    "3 drafts, async": Row(26_600, 0.3, 6000, is_async=True, drafts=3),
    "3 drafts, tight": Row(7_700, 1.0, 6000, drafts=3),
    "gpt-oss-20b": Row(27_264, 0.14, 6000, groups=GPT_OSS),
    "gpt-oss-20b, async": Row(27_264, 0.14, 6000, is_async=True, groups=GPT_OSS),
    "gpt-oss-20b, tight": Row(7_872, 1.0, 6000, groups=GPT_OSS),
    "gpt-oss-20b, shared": Row(27_264, 0.14, 6000, groups=GPT_OSS, shared=500),
    "gpt-oss, sh., tight": Row(7_872, 1.0, 6000, groups=GPT_OSS, shared=500),
    "Gemma-3-27B": Row(53_889, 0.14, 6000, groups=GEMMA_3),
    "Qwen3-Next": Row(1_988, 0.14, 6000, block_size=272, groups=QWEN3_NEXT),
    "gpt-oss, 3 drafts": Row(27_264, 0.3, 6000, drafts=3, groups=GPT_OSS),
    "gpt-oss, 3 dr., as.": Row(27_264, 0.3, 6000, is_async=True, drafts=3, groups=GPT_OSS),
    "Qwen3-Next, MTP": Row(1_988, 0.3, 6000, drafts=2, block_size=272, groups=QWEN3_NEXT),
    "Llama-4-Scout": Row(106_500, 0.14, 6000, groups=LLAMA_4),
    "SGLang": Row(425_600, 0.14, 6000, is_async=True, block_size=1, sglang=SGLangFlags()),
    "SGLang, tight": Row(123_200, 1.0, 6000, is_async=True, block_size=1, sglang=SGLangFlags()),
    "SGLang, t., priority": Row(
        123_200, 1.0, 6000, is_async=True, block_size=1, sglang=SGLangFlags(), flags=(("policy", "priority"),)
    ),
    "reserve_max, tight": Row(7_700, 1.0, 6000, flags=(("admission", "reserve_max"),)),
    "batch_wait": Row(26_600, 0.14, 6000, flags=(("batch_wait", WAIT),)),
}
STEPPED = 40
"""Requests that go step by step: enough of them for a rate, not for a full batch."""


def scenario(row: Row, num_requests: int) -> Scenario:
    """Return the workload: lengths lognormal, arrivals Poisson, ends by EOS."""
    answer = {
        "kind": "lognormal",
        "median": row.answer,
        "sigma": 0.8,
        "low": row.answer // 24,
        "high": 32_768,
    }
    prompt: Any = {"kind": "lognormal", "median": 512, "sigma": 0.6, "low": 32, "high": 4096}
    if row.shared:
        prompt = 512
    arrivals = {"kind": "poisson", "rate": row.rate}
    workload = {"num_requests": num_requests, "prompt": prompt, "answer": answer, "arrivals": arrivals}
    workload["shared_prefix_tokens"] = row.shared
    limits = {"thrash_ratio": 1e6}
    return parse_scenario({"model": "stated", "step_time": STEP, "workload": workload, "limits": limits})


def run(row: Row, num_requests: int, keep_records: bool = True, step_by_step: bool = False) -> Result:
    """Simulate one case."""
    spec = scenario(row, num_requests)
    config = EngineConfig(
        num_gpu_blocks=row.num_blocks + 1,
        block_size=row.block_size,
        kv_cache_groups=row.groups,
        max_num_seqs=128,
        max_num_batched_tokens=8192,
        max_model_len=40_960,
        async_scheduling=row.is_async,
        num_speculative_tokens=row.drafts,
        **dict(row.flags),
    )
    setup = Setup(config, StatedStepTime.of(spec.step_time), 131072.0, 1, sglang=row.sglang)
    return simulate(spec, setups={"": setup}, keep_records=keep_records, step_by_step=step_by_step)


def stepped(row: Row) -> float:
    """Simulate a case step by step; return requests per CPU second."""
    start = process_time()
    run(row, STEPPED, step_by_step=True)
    return STEPPED / (process_time() - start)


@dataclass(slots=True)
class Naive:
    """A request of the naive loop."""

    prompt: int
    output: int
    computed: int = 0
    generated: int = 0
    finish: int = 0


def naive(row: Row, num_requests: int) -> float:
    """Step a plain paged batch, every request in every step; return requests per CPU second."""
    spec = scenario(row, num_requests)
    load, cost = draw_load(spec.workload), StatedStepTime.of(spec.step_time)
    due = (load.arrival_s * TICKS_PER_S).astype(int).tolist()
    asked = map(Naive, load.prompt_tokens.tolist(), load.output_tokens.tolist())
    arrivals = deque(zip(due, asked, strict=True))
    waiting: deque[Naive] = deque()
    running: list[Naive] = []
    now, free, done = 0, row.num_blocks, 0
    start = process_time()
    while done < num_requests:
        while arrivals and arrivals[0][0] <= now:
            waiting.append(arrivals.popleft()[1])
        if not running and not waiting:
            now = arrivals[0][0]
            continue
        prefill, batch = _naive_admit(waiting, running, free, row.num_blocks // 100)
        free -= sum(-(-r.computed // 16) for r in batch)
        need = sum(r.computed % 16 == 0 for r in running)
        while need > free:
            victim = running.pop()
            free += -(-victim.computed // 16)
            need -= victim.computed % 16 == 0
            victim.computed = 0
            waiting.appendleft(victim)
        free -= need
        context = 0
        for request in running:
            request.computed += 1
            context += request.computed
        ticks = cost.fixed + cost.per_sequence * len(running) + cost.per_context * context
        now += ticks + cost.per_prefill * prefill
        running += batch
        for request in running:
            request.generated += 1
        if any(request.generated >= request.output for request in running):
            for request in [r for r in running if r.generated >= r.output]:
                free += -(-request.computed // 16)
                request.finish, done = now, done + 1
            running = [r for r in running if r.generated < r.output]
    return num_requests / (process_time() - start)


def _naive_admit(
    waiting: deque[Naive], running: list[Naive], free: int, spare: int
) -> tuple[int, list[Naive]]:
    """Admit what fits and leaves `spare` blocks, whole prompts at a time."""
    tokens, batch = 0, []
    while waiting and len(running) + len(batch) < 128:
        size = waiting[0].prompt + waiting[0].generated
        free -= -(-size // 16)
        if (free < spare and (running or batch)) or (batch and tokens + size > 8192):
            break
        tokens += size
        batch.append(waiting.popleft())
        batch[-1].computed = size
    return tokens, batch


def report(name: str, num_requests: int, keep_records: bool, yardstick: float) -> None:
    """Print one line."""
    run(ROWS[name], 1)  # what the first simulation of a process imports is no request's
    start = process_time()
    found = run(ROWS[name], num_requests, keep_records)
    cpu_s = process_time() - start
    totals: Any = found.totals
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    changes = totals.leaps + totals.steps - totals.leapt_steps
    rate = num_requests / cpu_s
    ratio = f"{rate / yardstick:9.1f}x" if yardstick else f"{'':10}"
    print(f"{name:21}{num_requests:>10,}{rate:>12,.0f}{ratio}{changes / num_requests:>9.1f}"
          f"{totals.steps / num_requests:>9.0f}{totals.preemptions / num_requests:>9.1f}{peak_mb:>9.0f}")  # fmt: skip


def main() -> None:
    """Print requests per CPU second, beside the naive loop's on the same workload."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("row", nargs="?", choices=ROWS)
    parser.add_argument("num_requests", nargs="?", type=int, default=5000)
    parser.add_argument("--no-records", action="store_true")
    args = parser.parse_args()
    columns = {
        "": 21,
        "requests": 10,
        "per CPU s": 12,
        "yardstick": 10,
        "changes": 9,
        "steps": 9,
        "preempt": 9,
    }
    print(f"inner loops: {'Python' if str(scheduler.__file__).endswith('.py') else 'compiled by mypyc'}")
    print("".join(f"{name:>{width}}" for name, width in columns.items()) + f"{'peak MB':>9}")
    for name in [args.row] if args.row else ROWS:
        row = ROWS[name]
        yardstick = 0.0 if args.row else stepped(row) if row.is_stepped else naive(row, 300)
        report(name, args.num_requests, not args.no_records, yardstick)
    print(
        "yardstick: the naive loop; with drafts, other groups, schedulers or rules the same simulation step by step"
    )
    print("per request: changes = leaps and single steps; peak MB = of the process so far")


if __name__ == "__main__":
    main()
