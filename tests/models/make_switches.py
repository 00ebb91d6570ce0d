"""Asks vLLM what every architecture's switches do to its weights: ties, biases, norms, each told the other way.

    python tests/models/make_switches.py

Writes `tests/fixtures/switches_vllm_0.32.json.xz`: for the first case of each architecture in `make_architectures.py`'s
fixture and each switch, bytes of parameters of one rank of one with that switch turned in the sections of the language
model, and with ties that its top and its section disagree on (null: vLLM's class does not start).
Environment: see `vllm_meta.py`.
"""

from __future__ import annotations

import copy
import json
import lzma
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import vllm_meta
from make_architectures import FIXTURE
from switches import SWITCHES, TOPS, first_cases, topped, turned

SWITCHED = FIXTURE.with_name("switches_vllm_0.32.json.xz")


def ask(case: dict[str, Any]) -> int | None:
    """Bytes of parameters; None where vLLM's class does not start."""
    try:
        _, model = vllm_meta.build(
            copy.deepcopy(case["config"]),
            1,
            device=case.get("device", "meta"),
            beside=case.get("beside"),
            **case.get("flags", {}),
        )
    except Exception:  # whatever vLLM stumbles over is the answer
        return None
    return vllm_meta.weights(model)[0]


def main() -> None:
    cases = json.loads(lzma.decompress(FIXTURE.read_bytes()))
    vllm_meta.platform()
    found: dict[str, dict[str, int | None]] = {}
    for name in first_cases(cases):
        found[name] = {}
        for switch in SWITCHES:
            for value in (True, False):
                config = turned(cases[name]["config"], switch, value)
                if config is not None:
                    found[name][f"{switch}={value}"] = ask({**cases[name], "config": config})
        for told, values in TOPS.items():
            config = topped(cases[name]["config"], values)
            if config is not None:
                found[name][told] = ask({**cases[name], "config": config})
        print(name, found[name], flush=True)
    text = json.dumps(found, separators=(",", ":"))
    SWITCHED.write_bytes(lzma.compress(text.encode(), preset=9))


if __name__ == "__main__":
    main()
