"""Bends one rule in the syntax tree of a function, to see whether a test notices."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest


class Swap(ast.NodeTransformer):
    """Puts one expression or statement in the place of another."""

    def __init__(self, right: str, wrong: str) -> None:
        self.right, self.wrong = (ast.parse(text).body[0] for text in (right, wrong))
        if isinstance(self.right, ast.Expr):
            assert isinstance(self.wrong, ast.Expr)
            self.right, self.wrong = self.right.value, self.wrong.value
        self.num_swapped = 0

    def visit(self, node: ast.AST) -> ast.AST:
        """Swap a node that says the same."""
        if ast.dump(node) == ast.dump(self.right):
            self.num_swapped += 1
            return self.wrong
        return self.generic_visit(node)


def mutate(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, right: str, wrong: str) -> None:
    """Bend one rule in the syntax tree of a function."""
    function = getattr(place, name)
    swap = Swap(right, wrong)
    tree = swap.visit(ast.parse(textwrap.dedent(inspect.getsource(function))))
    assert swap.num_swapped == 1, f"{name} does not say {right!r} once"
    flags = function.__code__.co_flags & annotations.compiler_flag
    names: dict[str, Any] = {}
    exec(compile(ast.fix_missing_locations(tree), __file__, "exec", flags), function.__globals__, names)
    monkeypatch.setattr(place, name, names[name])
