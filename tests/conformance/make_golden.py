"""Packs reference logs of vLLM into `scenarios.jsonl.xz` and `golden.jsonl.xz`.

make_golden.py FOLDER [offload]: it has scenarios*/NAME.json and golden*/{sync,async}/NAME.json, as vLLM's own scheduler
left them. Of the logs of offloading, in the folder of that name, hashes and totals are kept.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUMMARY = (
    "steps",
    "stuck",
    "preemptions",
    "scheduled_tokens",
    "prompt_tokens",
    "output_tokens",
    "hit_tokens",
)


def pack(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one compact JSON object per line."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    path.write_bytes(lzma.compress(text.encode(), preset=9))
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def golden_row(name: str, mode: str, log: dict[str, Any]) -> dict[str, Any]:
    """Keep what a comparison needs."""
    row = {"name": name, "mode": mode, "vllm_version": log["header"]["vllm_version"]}
    row |= {
        key: log[key]
        for key in ("sched_sha256", "state_sha256", "columns", "rows", "preemptions")
        if key in log
    }
    return row | {"summary": {key: log["summary"][key] for key in (*SUMMARY, "evicted", "peak_used")}}


OFFLOAD_SUMMARY = (
    "loads",
    "load_chunks",
    "stores",
    "store_chunks",
    "store_failed",
    "cpu_evicted",
    "flushed",
    "retries",
)


def offload_row(name: str, mode: str, log: dict[str, Any]) -> dict[str, Any]:
    """Keep hashes and totals; without a tier the log has no state that is compared."""
    row = golden_row(name, mode, log)
    summary = {key: log["summary"][key] for key in OFFLOAD_SUMMARY if key in log["summary"]}
    kept = ("name", "mode", "vllm_version", "sched_sha256", *(("state_sha256",) if summary else ()))
    tier = {"offload_sha256": log["offload_sha256"]} if summary else {}
    return {key: row[key] for key in kept} | tier | {"summary": row["summary"] | summary}


def main() -> None:
    """Pack both files."""
    source = Path(sys.argv[1])
    make_row, target = (offload_row, HERE / sys.argv[2]) if len(sys.argv) > 2 else (golden_row, HERE)
    scenarios, golden = [], []
    for path in sorted(source.glob("scenarios*/*.json")):
        scenarios.append(json.loads(path.read_text()))
        folder = source / path.parent.name.replace("scenarios", "golden")
        for mode in ("sync", "async"):
            golden.append(make_row(path.stem, mode, json.loads((folder / mode / path.name).read_text())))
    pack(target / "scenarios.jsonl.xz", scenarios)
    pack(target / "golden.jsonl.xz", golden)


if __name__ == "__main__":
    main()
