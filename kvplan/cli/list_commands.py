"""`kvplan list` and `show`: everything that has a name, with its parameters, defaults and source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any, Literal, NamedTuple

import yaml

from kvplan.cli.catalog_commands import model_facts
from kvplan.cli.options import SWITCH, print_json
from kvplan.cli.terminal import show
from kvplan.formulas.quality import pass_at_k
from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import scenarios_dir
from kvplan.ground.gpu import get_gpu, gpu_names
from kvplan.ground.tables import Table
from kvplan.models.load import aliases, bundled_models, find_bundled, load_model
from kvplan.profiles.profile import Profile, bundled_profiles
from kvplan.workload.pass_tables import read_pass_table
from kvplan.workload.quality_sets import quality_sets
from kvplan.workload.strategies.catalog import STRATEGIES, parameters
from kvplan.workload.verifiers import measured_rates

NO_LIMIT = 1 << 62
SHORT = 100
"""Characters of a line about a name."""
Kind = Literal["scenarios", "strategies", "quality", "verifiers", "profiles", "models", "gpus"]


class Shelf(NamedTuple):
    """One kind of named things."""

    names: Callable[[], Iterator[tuple[str, str]]]
    """Each name, and a line about it."""
    find: Callable[[str], Any]
    """A name's whole text, or plain values; None where the name is not of this kind."""


def list_command(
    kind: Kind | None = None, pattern: str = "", /, *, json: Annotated[bool, SWITCH] = False
) -> int:
    """List what has a name: scenarios, strategies, quality, verifiers, profiles, models, gpus.

    For example:

        kvplan list strategies

        kvplan list models qwen3

    Parameters
    ----------
    kind
        What to list; left out: every kind, and how many there are.
    pattern
        Only names that contain it.
    json
        One JSON document on stdout.
    """
    if kind is None:
        counts = {name: sum(1 for _ in shelf.names()) for name, shelf in SHELVES.items()}
        if json:
            print_json({"schema_version": 1, "kinds": counts})
        else:
            print("\n".join(f"{number:>5} {name:<12} kvplan list {name}" for name, number in counts.items()))
        return 0
    rows = [row for row in SHELVES[kind].names() if pattern.casefold() in row[0].casefold()]
    if json:
        print_json({"schema_version": 1, kind: [{"name": name, "about": about} for name, about in rows]})
    else:
        cells = tuple((name, shorten(about, SHORT, placeholder=" ...")) for name, about in rows)
        show([Table(("", ""), cells) if cells else f"no name of {kind} contains {pattern!r}"])
    return 0 if rows else 1


def show_command(name: str, /, *, json: Annotated[bool, SWITCH] = False) -> int:
    """Show what a name stands for: a scenario's text, a strategy's parameters, a set's figures and their source.

    For example:

        kvplan show best_of_n

        kvplan show recommend_qwq_500_users

    Parameters
    ----------
    name
        Of anything that `kvplan list` lists, or a file of graded samples (CSV, JSON, JSONL).
    json
        One JSON document on stdout.
    """
    finders = {kind: shelf.find for kind, shelf in SHELVES.items()} | {"pass_table": _pass_table}
    for kind, find in finders.items():
        found = find(name)
        if found is None:
            continue
        if json:
            print_json({"schema_version": 1, "kind": kind, "name": name, "is": found})
        else:
            print(
                found.rstrip() if isinstance(found, str) else yaml.safe_dump(found, sort_keys=False).rstrip()
            )
        return 0
    known = [known for shelf in SHELVES.values() for known, _ in shelf.names()]
    raise KvplanError(
        f"nothing is called {name!r}{did_you_mean(name, known)}; kvplan list names all {len(known):,}"
    )


# --- the kinds -----------------------------------------------------------------------------------


def _scenarios() -> Iterator[tuple[str, str]]:
    for path in sorted(scenarios_dir().glob("*.yaml")):
        yield path.stem, _first_sentence(_comment(path.read_text())).removeprefix("Shows: ")


def _scenario(name: str) -> str | None:
    path = scenarios_dir() / f"{name.removesuffix('.yaml')}.yaml"
    return path.read_text() if path.parent == scenarios_dir() and path.is_file() else None


def _comment(text: str) -> str:
    """What the lines before the first key say."""
    lines = text.splitlines()
    said = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
    return " ".join(line.lstrip("# ") for line in said)


def _first_sentence(text: str) -> str:
    return " ".join(text.partition(". ")[0].split()).rstrip(".")


def _strategies() -> Iterator[tuple[str, str]]:
    for name, function in STRATEGIES.items():
        yield name, _first_sentence(function.__doc__ or "")


def _strategy(name: str) -> dict[str, Any] | None:
    if name not in STRATEGIES:
        return None
    schema = parameters(name).model_json_schema()
    required = schema.get("required", ())
    return {
        "strategy": name,
        "what": " ".join((STRATEGIES[name].__doc__ or "").split()),
        "parameters": {
            key: {"required": key in required} | {k: _plain(v) for k, v in spec.items() if k in _SAID}
            for key, spec in schema["properties"].items()
        },
    }


def _plain(value: Any) -> Any:
    """A count that stands for no limit is none."""
    return None if isinstance(value, int) and value >= NO_LIMIT else value


_SAID = ("default", "description", "minimum", "maximum", "exclusiveMinimum", "enum")
"""Of a parameter's JSON schema."""


def _quality() -> Iterator[tuple[str, str]]:
    for name, found in quality_sets().items():
        said = found.is_assumed and not found.source.startswith("assumed")
        yield name, ("assumed: " if said else "") + found.source


def _verifiers() -> Iterator[tuple[str, str]]:
    for name, found in measured_rates().items():
        yield name, f"{found.pairwise_accuracy:.1%} of pairs on {found.benchmark}: {found.source}"


def _verifier(name: str) -> dict[str, Any] | None:
    if name not in measured_rates():
        return None
    found = measured_rates()[name]
    return found.model_dump(mode="json") | {
        "true_positive_rate": found.rate,
        "true_negative_rate": found.rate,
    }


def _profiles() -> Iterator[tuple[str, str]]:
    for found in bundled_profiles():
        yield found.name, f"{found.gpu or '-'}, {found.engine} {found.engine_version}"


def _profile(name: str) -> dict[str, Any] | None:
    found = next((p for p in bundled_profiles() if p.name == name), None)
    return None if found is None else _profile_facts(found)


def _profile_facts(found: Profile) -> dict[str, Any]:
    timing = found.timing
    facts = {"name": found.name, "gpu": found.gpu, "engine": f"{found.engine} {found.engine_version}",
             "source": found.source, "licence": found.licence}  # fmt: skip
    if timing is None:
        return facts
    errors = [
        f"{e.regime} ({e.family}), {e.held_out}: {e.num_points:,} points, {e.median:.1%} off in the median,"
        f" {e.p95:.1%} at the 95th percentile, bias {e.bias:+.1%}"
        for e in timing.errors
    ]
    return facts | {"held_out_errors": errors, "not_measured": dict(timing.assumed)}


def _models() -> Iterator[tuple[str, str]]:
    for name in (*bundled_models(), *aliases()):
        yield name, ""


def _model(name: str) -> dict[str, Any] | None:
    if find_bundled(name) is None:
        return None
    return model_facts(name, load_model(name))


def _gpus() -> Iterator[tuple[str, str]]:
    for name in gpu_names():
        card = get_gpu(name)
        yield name, f"{card.usable_gib:.1f} GiB, {card.bandwidth_gb_s:,.0f} GB/s"


def _gpu(name: str) -> dict[str, Any] | None:
    if "=" in name or "/" in name:
        return None
    try:
        return get_gpu(name).model_dump(mode="json")
    except KvplanError:
        return None


def _pass_table(name: str) -> dict[str, Any] | None:
    """What a file of graded samples says, and its pass@k."""
    path = Path(name)
    if path.suffix not in (".csv", ".json", ".jsonl") or not path.is_file():
        return None
    read = read_pass_table(name)
    counts = [(len(s.correct), sum(s.correct)) for s in read.problems.values()]
    fewest = min(num for num, _ in counts)
    ks = [1 << power for power in range(fewest.bit_length())]
    num, right = zip(*counts, strict=True)
    return {
        "is": read.said,
        "pass_at_k": {k: round(float(pass_at_k(num, right, k).mean()), 4) for k in ks},
        "mean_tokens": {
            said: _mean(
                [
                    n
                    for s in read.problems.values()
                    for n, ok in zip(s.tokens, s.correct, strict=True)
                    if ok == is_right
                ]
            )
            for said, is_right in (("right", True), ("wrong", False))
        },
    }


def _mean(values: list[int]) -> float | None:
    return round(sum(values) / len(values), 1) if values else None


SHELVES: dict[str, Shelf] = {
    "scenarios": Shelf(_scenarios, _scenario),
    "strategies": Shelf(_strategies, _strategy),
    "quality": Shelf(
        _quality,
        lambda name: quality_sets()[name].model_dump(mode="json") if name in quality_sets() else None,
    ),
    "verifiers": Shelf(_verifiers, _verifier),
    "profiles": Shelf(_profiles, _profile),
    "models": Shelf(_models, _model),
    "gpus": Shelf(_gpus, _gpu),
}
"""Kind -> its names. Add a kind here."""
