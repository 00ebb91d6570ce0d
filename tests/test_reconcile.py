"""Start-up logs beside their plans: what is read, what explains it, what is learned, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvplan.errors import KvplanError
from kvplan.logs import file_lines, read_log
from kvplan.plan import answer
from kvplan.reconcile import reconcile

V1 = """
INFO 09-01 [api_server.py:1896] vLLM API server version 0.11.0
(APIServer pid=1) INFO non-default args: {'model': 'Qwen/Qwen3-32B', 'max_model_len': 16000, 'block_size': 128}
(EngineCore_DP0 pid=22) INFO Model loading took 61.0300 GiB and 5.2 seconds
(EngineCore_DP0 pid=22) INFO [gpu_worker.py:298] Available KV cache memory: 4.45 GiB
(EngineCore_DP0 pid=22) INFO [kv_cache_utils.py:1087] GPU KV cache size: 18,176 tokens
(EngineCore_DP0 pid=22) INFO [kv_cache_utils.py:1091] Maximum concurrency for 16,000 tokens per request: 1.14x
"""


def test_a_log_names_its_model_flags_and_figures() -> None:
    log = read_log(V1)
    assert (log.engine, log.version, log.model) == ("vllm", "0.11.0", "Qwen/Qwen3-32B")
    assert log.flags["block_size"] == 128
    assert log.figures["cache_tokens"] == 18176


def test_what_is_learned_gives_the_log_back() -> None:
    """The plan of the same flags under the learned overheads has the log's tokens."""
    found = reconcile(V1, gpu="h100")
    assert found.overheads is not None
    assert answer(replace(found.plan.question, profile=found.overheads)).cache_tokens.value == 18176


def test_a_log_without_a_card_asks_for_one() -> None:
    with pytest.raises(KvplanError, match="--gpu NAME"):
        reconcile(V1)


def test_other_programs_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(KvplanError, match="no start-up of vLLM"):
        read_log("Listening on port 80\n" * 100)
    file = tmp_path / "x.bin"
    file.write_bytes(bytes(range(256)) * 100)
    with pytest.raises(KvplanError, match="binary data"):
        read_log(file_lines(file))
