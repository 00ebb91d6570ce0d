"""Splitwise's `perf_model.csv` (whole prompt phases and decode steps of Llama-2-70B) as measurement rows."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

from kvplan.calibrate.measurements import Row
from kvplan.ground.errors import KvplanError

SHAPE = {
    "num_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 32000,
    "num_heads": 64, "num_kv_heads": 8, "head_dim": 128,
}  # fmt: skip
"""Of Llama-2-70B; source: its config.json."""


def splitwise_rows(paths: Sequence[Path], hardware: str) -> Iterator[Row]:
    """Whole decode steps and single-prompt phases of Llama-2-70B, one machine of the CSV; medians over repeats.

    Left out: `pcap` decode rows (a copy of the uncapped ones), TP 2 at batch 64 (does not fit the cards), prompt
    phases of more than one prompt (run in several passes).
    """
    rows = [row for path in paths for row in _csv(path)]
    known = sorted({row["hardware"] for row in rows if "pcap" not in row["hardware"]})
    if hardware not in known:
        raise KvplanError(f"no rows of hardware {hardware!r}; the file has {', '.join(known)}")
    yield {
        "op": "machine", "machine": hardware, "engine": "vllm", "engine_version": "0.2 (2023, before CUDA graphs)",
        "source": "Splitwise performance model data", "licence": "MIT", "enforce_eager": True,
    }  # fmt: skip
    groups: dict[tuple[int, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        if row["model"] == "llama2-70b" and row["hardware"] == hardware:
            key = ("tensor_parallel", "batch_size", "prompt_size", "token_size")
            groups[tuple(int(row[k]) for k in key)].append(row)
    for (tp, batch, prompt, output), repeats in sorted(groups.items()):
        if tp == 2 and batch >= 64:
            continue
        common = {"model": "llama2-70b", "tensor_parallel_size": tp, **SHAPE}
        context = batch * (prompt + output // 2)
        yield {
            "op": "decode_step", **common, "num_decodes": batch, "decode_context": context,
            "time_ms": median(float(r["token_time"]) for r in repeats),
        }  # fmt: skip
        if batch == 1 and output == 128:
            yield {
                "op": "prefill_step", **common, "num_prefill_tokens": prompt, "prefill_attention": prompt**2 / 2,
                "time_ms": median(float(r["prompt_time"]) for r in repeats),
            }  # fmt: skip


def _csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise KvplanError(f"{path}: cannot be read as CSV ({error})") from None
    needed = {"model", "hardware", "tensor_parallel", "batch_size", "prompt_size", "token_size", "token_time"}
    missing = needed - set(rows[0] if rows else ())
    if missing:
        raise KvplanError(
            f"{path}: no column {', '.join(sorted(missing))}; this is not Splitwise's perf_model.csv"
        )
    return rows
