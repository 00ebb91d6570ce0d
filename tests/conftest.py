"""Settings of all tests: which examples are drawn, and which tests are marked slow (`slow.py`).

The same examples at every run, so that a failure belongs to the change at hand; `make thorough` draws more of them,
`make explore` new ones.
"""

import os
from collections import defaultdict
from collections.abc import Generator
from importlib.util import find_spec
from pathlib import Path

import drawn
import pytest
from hypothesis import settings
from slow import LIST, SLOW, TESTS, cpu_s, is_slow, slow_names

# How long an example takes is the machine's affair.
settings.register_profile("kvplan", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(drawn.PROFILE)

_took: dict[str, float] = defaultdict(float)


def _name(item: pytest.Item) -> str:
    return f"{item.path.relative_to(TESTS).as_posix()}::{getattr(item, 'originalname', item.name)}"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: left out by `make quick`; tests/slow.txt lists them")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file that is slow as a whole is not even imported when slow tests are left out."""
    inside = collection_path.is_relative_to(TESTS)
    left_out = inside and collection_path.relative_to(TESTS).as_posix() in SLOW
    return True if left_out and config.option.markexpr == "not slow" else None


def is_compiled() -> bool:
    """Whether the package at hand is the one that mypyc built (`make compiled`)."""
    spec = find_spec("kvplan.schedulers.leap.scheduler")
    return spec is not None and not str(spec.origin).endswith(".py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    compiled = is_compiled()
    for item in items:
        if is_slow(_name(item)):
            item.add_marker(pytest.mark.slow)
        if compiled and "monkeypatch" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="compiled code cannot be patched with wrong rules"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    before = cpu_s()
    try:
        return (yield)
    finally:
        _took[_name(item)] += cpu_s() - before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say on how much the property tests ran."""
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)]
    num_laws = sum(r.when == "call" and "hypothesis" in r.keywords for r in reports)
    terminalreporter.write_line(f"{num_laws} property tests; costly laws on random examples: {drawn.SAID}")


def pytest_sessionfinish() -> None:
    if os.environ.get("KVPLAN_MEASURE"):
        LIST.write_text("\n".join(sorted(slow_names(SLOW, _took))) + "\n")
