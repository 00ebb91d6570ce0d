"""Lists the variables of the environment that vLLM reads.

    python tests/engines/make_variables.py

Writes `tests/fixtures/variables_vllm_0.32.txt`: names of `envs.py`, then, below an empty line, those that other files
read by themselves. Needs vLLM's source alone, where Python finds it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

VARIABLES = Path(__file__).resolve().parents[1] / "fixtures" / "variables_vllm_0.32.txt"


def listed(source: str) -> list[str]:
    """Keys of `environment_variables`."""
    table = next(
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "environment_variables"
    )
    return sorted(ast.literal_eval(key) for key in getattr(table, "keys", ()))


def main() -> None:
    found = importlib.util.find_spec("vllm")
    assert found
    folder = Path(str(found.origin)).parent
    names = listed((folder / "envs.py").read_text())
    read = re.compile(r"(?:environ[^\"'\n]*|getenv\()[\"'](VLLM_[A-Z0-9_]+)")
    others = {name for file in folder.rglob("*.py") for name in read.findall(file.read_text())}
    VARIABLES.write_text("\n".join([*names, "", *sorted(others - set(names))]) + "\n")


if __name__ == "__main__":
    main()
