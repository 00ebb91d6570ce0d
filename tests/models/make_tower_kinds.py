"""Writes `fixtures/tower_kinds_vllm_0.32.json`: the kinds of items for which vLLM's classes mark each of their towers.

    python tests/models/make_tower_kinds.py FOLDER_OF_VLLM

Reads source alone: the modalities of each `_mark_tower_model` and `_mark_composite_model` that a class or the bases
it calls run. Classes that mark theirs by what a processor says (the Transformers backend) or not at all are left out.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from kvplan.models.towers.rows import DECLARED
from kvplan.models.vision import has_tower

FIXTURE = Path(__file__).parents[1] / "fixtures" / "tower_kinds_vllm_0.32.json"


def registered(vllm: Path) -> dict[str, tuple[str, str]]:
    """Architecture -> (module, class)."""
    tree = ast.parse((vllm / "model_executor/models/registry.py").read_text())
    pairs = [
        (key.value, [e.value for e in value.elts if isinstance(e, ast.Constant)])
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple)
    ]
    return {name: (value[0], value[1]) for name, value in pairs if len(value) == 2}


def parsed(vllm: Path, module: str) -> ast.Module | None:
    path = vllm / "model_executor/models" / module.replace(".", "/")
    for file in (path.with_name(path.name + ".py"), path / "__init__.py"):
        if file.exists():
            return ast.parse(file.read_text())
    return None


def bases(vllm: Path, module: str, name: str) -> Iterator[ast.ClassDef]:
    """The class, then the bases that vLLM's models define, depth first."""
    tree = parsed(vllm, module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            yield node
            for base in node.bases:
                if isinstance(base, ast.Name):
                    yield from bases(vllm, module, base.id)
        if isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}:
            at = (node.module or "").removeprefix("vllm.model_executor.models.")
            real = next(a.name for a in node.names if (a.asname or a.name) == name)
            yield from bases(vllm, at, real)


def marks(node: ast.AST) -> Iterator[tuple[str, ...]]:
    for call in ast.walk(node):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        if call.func.attr == "_mark_tower_model" and not isinstance(call.args[1], ast.Name):
            kinds = ast.literal_eval(call.args[1])
            yield (kinds,) if isinstance(kinds, str) else tuple(sorted(kinds))
        if call.func.attr == "_mark_composite_model":
            targets = next(k.value for k in call.keywords if k.arg == "tower_targets")
            assert isinstance(targets, ast.Dict)
            yield from ((key.value,) for key in targets.keys if isinstance(key, ast.Constant))


def calls_super(method: ast.FunctionDef) -> bool:
    wanted = f"super().{method.name}"
    return any(isinstance(n, ast.Call) and ast.unparse(n.func) == wanted for n in ast.walk(method))


def towers(vllm: Path, module: str, name: str) -> list[tuple[str, ...]]:
    """Marks of the methods that an object of the class runs."""
    if module.startswith("vllm.models."):  # a folder for each maker of cards
        files = sorted((vllm / module.removeprefix("vllm.").replace(".", "/")).rglob("*.py"))
        return sorted({mark for file in files for mark in marks(ast.parse(file.read_text()))})
    found: set[tuple[str, ...]] = set()
    hidden: set[str] = set()
    for each in bases(vllm, module, name):
        methods = [m for m in each.body if isinstance(m, ast.FunctionDef) and m.name not in hidden]
        found.update(mark for method in methods for mark in marks(method))
        hidden.update(method.name for method in methods if not calls_super(method))
    return sorted(found)


def main(folder: str) -> None:
    vllm = Path(folder)
    known = {name: at for name, at in registered(vllm).items() if name in DECLARED or has_tower(name)}
    kinds = {name: towers(vllm, *at) for name, at in sorted(known.items())}
    lines = (f"{json.dumps(name)}: {json.dumps(found)}" for name, found in kinds.items() if found)
    FIXTURE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
