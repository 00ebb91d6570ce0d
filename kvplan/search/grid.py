"""The points of a sweep: every combination of some values of some scenario keys, or a sample of them.

A point knows the scenario it stands for, or why there is none, and is told apart by a hash of that scenario.
Runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import kvplan
from kvplan.ground.errors import KvplanError
from kvplan.ground.strict_yaml import complaint_of, load_yaml
from kvplan.models.load import path_exists
from kvplan.scenario.schema import Scenario, overridden, parse_scenario, read_scenario, set_key

MAX_POINTS = 20_000
"""More are refused unless forced: at a tenth of a second each, half an hour of one core."""
MAX_FORCED = 5_000_000
"""More do not fit in memory as points and rows."""


class Axis(NamedTuple):
    """One key and its values."""

    key: str
    values: tuple[Any, ...]


class Base(NamedTuple):
    """A scenario before it is checked: what the points change."""

    data: dict[str, Any]
    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Point:
    """One combination."""

    index: int
    settings: dict[str, Any]
    """Key -> value."""
    scenario: Scenario | None
    """None = the values contradict each other; `error` says how."""
    error: str
    hash: str
    """Of the resolved scenario and the files it names; the same point has the same hash in every sweep."""


def read_base(scenario: Scenario | Mapping[str, Any] | str | Path, overrides: Iterable[str] = ()) -> Base:
    """A file, a bundled name, a dictionary or a checked scenario as the base of a sweep, overrides applied."""
    if isinstance(scenario, Scenario):
        data = overridden(scenario.model_dump(mode="json", exclude_defaults=True), overrides)
        return Base(data, scenario.name or "scenario", scenario.folder)
    if isinstance(scenario, Mapping):
        return Base(overridden(scenario, overrides), str(scenario.get("name", "scenario")), Path())
    data, file = read_scenario(scenario, overrides)
    return Base(data, file.name, file.parent)


def parse_axis(text: str) -> Axis:
    """Read `key=a,b,c`; each value is YAML, so that lists and mappings work too.

    >>> parse_axis("engine.max_num_seqs=64, 128")
    Axis(key='engine.max_num_seqs', values=(64, 128))
    >>> parse_axis("problems.strategies=[single_pass],[{strategy: best_of_n, n: 4}]").values[1]
    [{'strategy': 'best_of_n', 'n': 4}]
    """
    key, equals, values = text.partition("=")
    try:
        read = load_yaml(f"[{values}]")
    except yaml.YAMLError as error:
        raise KvplanError(
            f"--over {key}: {values!r} is not a list of YAML values ({complaint_of(error)})"
        ) from None
    if not equals or not key.strip() or not read:
        raise KvplanError(f"--over {text}: write key=a,b,c, e.g. engine.max_num_seqs=64,128,256")
    return Axis(key.strip(), tuple(read))


def make_axes(over: Mapping[str, Any] | Sequence[str]) -> list[Axis]:
    """Axes from `{"key": [values]}` or from texts; a key that is named twice is refused."""
    if isinstance(over, Mapping):
        axes = [Axis(k, tuple(v) if isinstance(v, list | tuple | range) else (v,)) for k, v in over.items()]
    else:
        axes = [parse_axis(text) for text in over]
    if not axes:
        raise KvplanError("nothing varies: name a key and its values, e.g. --over gpu=h100,h200")
    keys = [key for axis in axes for key in axis.key.split("+")]
    for key in keys:
        if keys.count(key) > 1:
            raise KvplanError(f"--over {key}: named twice; put all its values in one")
    for axis in axes:
        if not axis.values:
            raise KvplanError(f"--over {axis.key}: no values")
    return axes


def make_points(
    base: Base, axes: Sequence[Axis], *, sample: int | None = None, seed: int = 0, force: bool = False
) -> list[Point]:
    """Every combination, the last axis fastest; or `sample` different ones drawn at random, in the same order.

    A scenario that compares strategies becomes one point per strategy. Raises KvplanError for a key that does not
    exist, for a base that no value makes valid, and for too many points.
    """
    size = prod(len(axis.values) for axis in axes)
    number = size if sample is None else min(sample, size)
    _check_size(number, axes, force)
    chosen = range(size) if number == size else sorted(random.Random(seed).sample(range(size), number))
    points: list[Point] = []
    for flat in chosen:
        for settings, scenario, error in _resolve(base, _pick(axes, flat)):
            points.append(Point(len(points), settings, scenario, error, _hash(settings, scenario)))
    if all(point.scenario is None for point in points):
        raise KvplanError(points[0].error if points else "nothing to sweep: a sample of 0 points")
    return points


def _check_size(number: int, axes: Sequence[Axis], force: bool) -> None:
    if number <= (MAX_FORCED if force else MAX_POINTS):
        return
    shape = " x ".join(f"{len(axis.values)} {axis.key}" for axis in axes)
    way = "" if force else "; --force runs them all,"
    raise KvplanError(
        f"{number:,} points ({shape}) are more than {MAX_FORCED if force else MAX_POINTS:,}{way}"
        f"{'' if way else ';'} --sample N runs N of them, drawn at random"
    )


def _pick(axes: Sequence[Axis], flat: int) -> dict[str, Any]:
    """The combination at a place of the grid."""
    picked = {}
    for axis in reversed(axes):
        flat, place = divmod(flat, len(axis.values))
        picked[axis.key] = axis.values[place]
    return {key: value for axis in axes for key, value in _apart(axis.key, picked[axis.key])}


def _apart(key: str, value: Any) -> list[tuple[str, Any]]:
    """Keys joined by + change together: `gpu+replicas` takes [h100, 2]."""
    keys = key.split("+")
    if len(keys) == 1:
        return [(key, value)]
    if not isinstance(value, list | tuple) or len(value) != len(keys):
        raise KvplanError(f"--over {key}: each value must be a list of {len(keys)}, not {value!r}")
    return list(zip(keys, value, strict=True))


Resolved = tuple[dict[str, Any], Scenario | None, str]


def _resolve(base: Base, settings: dict[str, Any]) -> Iterator[Resolved]:
    """The scenario of one combination, once per strategy."""
    data = dict(base.data)
    for key, value in settings.items():
        set_key(data, key, value)
    try:
        scenario = parse_scenario(data, base.name, base.folder)
    except KvplanError as error:
        if ": unknown key" in str(error):
            raise
        yield settings, None, str(error)
        return
    problems = scenario.problems
    specs = [one for said in problems.strategies for one in said.expanded()] if problems else []
    if problems is None or len(specs) == 1:
        yield settings, scenario, ""
        return
    for spec in specs:
        alone = scenario.model_copy(
            update={"problems": problems.model_copy(update={"strategies": (spec,)})}, deep=False
        )
        alone._folder = base.folder
        yield {**settings, "strategy": spec.name}, alone, ""


def _hash(settings: dict[str, Any], scenario: Scenario | None) -> str:
    """16 hexadecimal digits; the name of the scenario does not count, the contents of its files do."""
    if scenario is None:
        said: Any = settings
        files: list[str] = []
    else:
        said = scenario.model_dump(mode="json", exclude={"name", "search"})
        files = [found for text in texts_in(said) if (found := _contents(scenario.folder / text))]
    text = json.dumps([kvplan.__version__, said, files], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a document that could name a file."""
    if isinstance(value, str):
        if "." in value or "/" in value:
            yield value
    elif isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from texts_in(child)


def named_files(scenario: Scenario) -> list[Path]:
    """Every file that a scenario names: its traces, tables, models, profiles."""
    texts = texts_in(scenario.model_dump(mode="json", exclude={"name"}))
    return [path for text in texts for path in (scenario.folder / text, Path(text)) if path_exists(path)]


def _contents(path: Path) -> str:
    """A digest of a file, "" when there is none."""
    try:
        facts = path.stat()
        return _digest(path, facts.st_mtime_ns, facts.st_size) if path.is_file() else ""
    except (OSError, ValueError):
        return ""


@lru_cache(256)
def _digest(path: Path, mtime_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def settings_text(settings: Mapping[str, Any]) -> str:
    """A combination in words."""
    return ", ".join(f"{key.rpartition('.')[2]} {value_text(value)}" for key, value in settings.items())


def value_text(value: Any) -> str:
    """A value as a table shows it.

    >>> value_text([{"strategy": "best_of_n", "n": 4}]), value_text(True)
    ('best_of_n n=4', 'True')
    """
    if isinstance(value, list) and len(value) == 1:
        return value_text(value[0])
    if isinstance(value, dict) and "strategy" in value:
        rest = [f"{key}={one}" for key, one in value.items() if key != "strategy"]
        return " ".join([str(value["strategy"]), *rest])
    return str(value)
