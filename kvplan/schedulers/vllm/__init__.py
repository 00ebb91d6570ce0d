"""The engine twin: vLLM V1's scheduler, KV cache manager and block pool. No clock, no randomness.

>>> from kvplan.ground.content import Segment
>>> from kvplan.schedulers.vllm import EngineConfig, Request, make_scheduler
>>> scheduler = make_scheduler(EngineConfig(num_gpu_blocks=65, max_model_len=1024))
>>> scheduler.add_request(Request("a", (Segment("question", 100),), max_tokens=3))
>>> while scheduler.has_unfinished_requests():
...     batch = scheduler.schedule()
...     done = scheduler.update_from_output(batch)
...     print(batch.num_scheduled_tokens, [request.status.name for request in done])
{'a': 100} []
{'a': 1} []
{'a': 1} ['FINISHED_LENGTH_CAPPED']
"""

from kvplan.schedulers.request import Request, RequestStatus
from kvplan.schedulers.vllm.async_scheduler import AsyncScheduler, make_scheduler
from kvplan.schedulers.vllm.config import EngineConfig, KVCacheGroup
from kvplan.schedulers.vllm.output import SchedulerOutput
from kvplan.schedulers.vllm.scheduler import Scheduler

__all__ = [
    "AsyncScheduler",
    "EngineConfig",
    "KVCacheGroup",
    "Request",
    "RequestStatus",
    "Scheduler",
    "SchedulerOutput",
    "make_scheduler",
]
