"""Packs reference logs of SGLang into `scenarios.jsonl.xz` and `golden.jsonl.xz`.

make_golden.py FOLDER: it has scenarios/NAME.json and golden/{normal,overlap}/NAME.json, as SGLang's own scheduler
left them.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEYS = ("sched_sha256", "state_sha256", "columns", "rows", "all_rows", "retractions", "preemptions")
SUMMARY = (
    "steps", "stuck", "prefill_passes", "decode_passes", "retractions", "preemptions", "scheduled_tokens",
    "prompt_tokens", "output_tokens", "hit_tokens", "evicted", "aborted", "peak_used",
)  # fmt: skip


def pack(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one compact JSON object per line."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
    path.write_bytes(lzma.compress(text.encode(), preset=9))
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size:,} bytes")


def golden_row(name: str, mode: str, log: dict[str, Any]) -> dict[str, Any]:
    """Keep what a comparison needs."""
    row = {"name": name, "mode": mode, "sglang_version": log["header"]["sglang_version"]}
    row |= {key: log[key] for key in KEYS}
    return row | {"summary": {key: log["summary"][key] for key in SUMMARY}}


def main() -> None:
    """Pack both files."""
    source = Path(sys.argv[1])
    scenarios, golden = [], []
    for path in sorted(source.glob("scenarios/*.json")):
        scenarios.append(json.loads(path.read_text()))
        for mode in ("normal", "overlap"):
            golden.append(
                golden_row(path.stem, mode, json.loads((source / "golden" / mode / path.name).read_text()))
            )
    pack(HERE / "scenarios.jsonl.xz", scenarios)
    pack(HERE / "golden.jsonl.xz", golden)


if __name__ == "__main__":
    main()
