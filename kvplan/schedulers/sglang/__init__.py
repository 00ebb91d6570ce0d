"""The second engine twin: SGLang 0.5.23's scheduler and radix cache. No clock, no randomness.

Same requests and token names as `kvplan.schedulers.vllm`; what differs is the policy: prefill before decode, a
new-token ratio instead of "admit what fits", retraction instead of preemption, prefixes shared to the token.

>>> from kvplan.ground.content import Segment
>>> from kvplan.schedulers.request import Request
>>> from kvplan.schedulers.sglang import SGLangConfig, SGLangScheduler
>>> scheduler = SGLangScheduler(SGLangConfig(max_total_tokens=1024, context_length=1024))
>>> scheduler.add_request(Request("a", (Segment("question", 100),), max_tokens=3)).rid
'a'
>>> while not scheduler.is_fully_idle:
...     batch = scheduler.schedule()
...     _ = scheduler.process(batch)
...     print([(row.req.rid, row.num_tokens) for row in batch.rows] if batch else "idle")
[('a', 100)]
[('a', 1)]
[('a', 1)]
idle
"""

from kvplan.schedulers.sglang.config import SGLangConfig
from kvplan.schedulers.sglang.radix_cache import RadixCache
from kvplan.schedulers.sglang.req import Req
from kvplan.schedulers.sglang.schedule_batch import ScheduleBatch
from kvplan.schedulers.sglang.scheduler import SGLangScheduler

__all__ = ["RadixCache", "Req", "SGLangConfig", "SGLangScheduler", "ScheduleBatch"]
