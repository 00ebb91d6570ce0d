"""Which engine vLLM's own load balancer chooses, for drawn queues and uses of the KV pool.

Run where vLLM is installed: `python tests/models/make_balancing.py`. One client, that has all requests itself; before
each request it knows what all engines have.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FIXTURE = Path(__file__).parents[1] / "fixtures" / "balancing_vllm_0.32.json"


def states(number: int, rng: random.Random) -> list[list[Any]]:
    """Waiting, running and used share of each engine; often equal, often without a queue."""
    busy, queues = rng.choice((1, 4, 40)), rng.random() < 0.6
    return [
        [rng.randrange(busy) if queues else 0, rng.randrange(busy), round(rng.random(), 2)]
        for _ in range(number)
    ]


def choices(number: int, seed: int) -> list[dict[str, Any]]:
    from vllm.v1.engine.core_client import DPLBAsyncMPClient

    rng = random.Random(seed)
    client = DPLBAsyncMPClient.__new__(DPLBAsyncMPClient)
    client.client_count, client.eng_start_index = 1, 0
    client.core_engines = [i.to_bytes(2, "little") for i in range(number)]
    found = []
    for i in range(60):
        engines = states(number, rng)
        client.reqs_in_flight = {}
        client.lb_engines = [list(one) for one in engines]
        client.engine_inflight = Counter(
            {name: one[0] + one[1] for name, one in zip(client.core_engines, engines, strict=True)}
        )
        request = SimpleNamespace(request_id=str(i), data_parallel_rank=None, pooling_params=None)
        chosen = client.get_core_engine_for_request(request)
        found.append({"engines": engines, "chosen": client.core_engines.index(chosen)})
    return found


def main() -> None:
    found = {f"{number} engines": choices(number, number) for number in (2, 3, 8)}
    FIXTURE.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
