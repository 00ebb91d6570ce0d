"""The engine twin on cases small enough to follow by hand; the figures are vLLM's rules."""

from __future__ import annotations

from kvplan.ground.content import Segment
from kvplan.schedulers.vllm import EngineConfig, Request, RequestStatus, make_scheduler


def run(config: EngineConfig, *requests: Request) -> list[dict[str, int]]:
    """Schedule until all have finished; return the batches."""
    scheduler = make_scheduler(config)
    for request in requests:
        scheduler.add_request(request)
    batches = []
    while scheduler.has_unfinished_requests():
        output = scheduler.schedule()
        batches.append(dict(output.num_scheduled_tokens))
        scheduler.update_from_output(output)
    return batches


def test_last_token_has_no_kv() -> None:
    """A request computes prompt + output - 1 tokens."""
    batches = run(
        EngineConfig(num_gpu_blocks=65, max_model_len=512), Request("a", (Segment("p", 100),), max_tokens=7)
    )
    assert sum(batch["a"] for batch in batches) == 100 + 7 - 1


def test_siblings_share_full_blocks_in_the_same_step() -> None:
    """Blocks are named when scheduled: the second of two equal 100-token prompts computes 100 - 96 tokens."""
    config = EngineConfig(num_gpu_blocks=65, max_model_len=512)
    batches = run(config, *(Request(i, (Segment("p", 100),), max_tokens=2) for i in "ab"))
    assert batches[0] == {"a": 100, "b": 4}


def test_stop_token_ends_before_max_tokens() -> None:
    """The scheduler plans with max_tokens and learns of a stop token when it is sampled."""
    request = Request("a", (Segment("p", 10),), max_tokens=50, stop_at=3)
    batches = run(EngineConfig(num_gpu_blocks=65, max_model_len=512), request)
    assert len(batches) == 3
    assert request.status is RequestStatus.FINISHED_STOPPED
