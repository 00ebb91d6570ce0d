"""Every number of a scenario has an upper bound that is told, and no file takes long to be refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel

from kvplan.ground.errors import KvplanError
from kvplan.scenario.schema import Scenario, load_scenario, parse_scenario
from kvplan.workload.strategies.catalog import STRATEGIES, parameters

CHECKED_ELSEWHERE = {"EngineArgs.gpu_memory_utilization"}
"""In (0, 1] for vLLM; other engines name their share otherwise."""


def unbounded(model: type[BaseModel], seen: set[type]) -> Iterator[str]:
    """Numeric fields of a config class and of all inside it that have no upper bound."""
    if model not in seen:
        seen.add(model)
        for name, field in model.model_fields.items():
            yield from _inside(field.annotation, field.metadata, f"{model.__name__}.{name}", seen)


def _inside(annotation: Any, metadata: list[Any], path: str, seen: set[type]) -> Iterator[str]:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        deeper = [x for m in more for x in getattr(m, "metadata", [])]
        yield from _inside(inner, [*metadata, *more, *deeper], path, seen)
    elif get_origin(annotation) is Literal:
        return
    elif get_args(annotation):
        keeps = get_origin(annotation) not in (tuple, list, dict)
        for inner in get_args(annotation):
            yield from _inside(inner, metadata if keeps else [], path, seen)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from unbounded(annotation, seen)
    elif annotation in (int, float):
        limits = (annotated_types.Le, annotated_types.Lt)
        if not any(isinstance(m, limits) for m in metadata) and path not in CHECKED_ELSEWHERE:
            yield path


def test_every_number_has_an_upper_bound() -> None:
    """Of the scenario, and of every strategy's parameters."""
    seen: set[type] = set()
    models = [Scenario, *map(parameters, STRATEGIES)]
    assert [path for model in models for path in unbounded(model, seen)] == []


def solving(strategy: dict[str, Any], **problems: Any) -> dict[str, Any]:
    return {"model": "Qwen/Qwen3-8B", "problems": {"strategies": [strategy], **problems}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (solving({"strategy": "best_of_n", "n": 1_000_000_000}), "less than or equal to 10000"),
        (solving({"strategy": "best_of_n", "n": list(range(1, 20_001))}), "lists make 20,000 strategies"),
        (solving({"strategy": "best_of_n", "n": []}), "lists make 0 strategies"),
        (solving({"strategy": "best_of_n", "params": 5}), "valid dictionary"),
        (solving({"strategy": "monte_carlo_labels", "rollouts": 10**9}), "less than or equal to 10000"),
        (solving({"strategy": "chat", "num_turns": 10**9}), "less than or equal to 10000"),
        (solving({"strategy": "beam_search", "beam_width": 9999, "branch_factor": 9999}), "branches at once"),
        (solving({"strategy": "single_pass"}, quality={"difficulty": {"beta": [0.5]}}), "difficulty.beta"),
        (solving({"strategy": "single_pass"}, quality={"sigma_within": 1e40}), "less than or equal to 5"),
        (solving({"strategy": "difficulty_router", "tiers": 5}), "difficulty_router"),
        ({"model": "x", "workload": {"num_requests": 10**30}}, "less than or equal to 20000000"),
    ],
)  # fmt: skip
def test_what_is_too_much_is_said(data: dict[str, Any], words: str) -> None:
    """One line, at once."""
    began = time.monotonic()
    with pytest.raises(KvplanError, match=words):
        parse_scenario(data)
    assert time.monotonic() - began < 5


def test_routers_in_routers_are_read_once() -> None:
    """Each level is read once, not twice as often as the one around it."""
    strategy: dict[str, Any] = {"strategy": "single_pass"}
    for _ in range(12):
        strategy = {"strategy": "difficulty_router", "tiers": [{"share": 1.0, "strategy": strategy}]}
    began = time.monotonic()
    parse_scenario(solving(strategy))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: x\n" + "".join(f"k{i}: 1\n" for i in range(300_000)), "more than 200000 values"),
        ("9" * 60_000, "a number of 60000 characters"),
        ("model: x\nreplicas: 0x" + "9" * 60_000, "a number of 60002 characters"),
        ("model: x\nreplicas: 1" + ":1" * 60_000, "a number of 120001 characters"),
        ("model: x\n[1, 2]: 3\n", "a key must be a plain word"),
        ("model: x\nworkload: {? {a: b} : 3}\n", "a key must be a plain word"),
        ("a: &a [*a]\n", "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: &a {" + ", ".join(f"k{i}: 1" for i in range(50)) + "}\nb: {<<: [" + ", ".join(["*a"] * 50) + "]}\n",
         "more than 16 mappings are merged"),
    ],
    ids=["keys", "digits", "hex", "base 60", "list as key", "mapping as key", "itself", "depth", "merges"],
)  # fmt: skip
def test_a_huge_file_is_refused_in_linear_time(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    began = time.monotonic()
    with pytest.raises(KvplanError, match=words):
        load_scenario(tmp_path / "s.yaml")
    assert time.monotonic() - began < 10
