"""Python's cycle collector while runs last."""

from __future__ import annotations

import gc

from kvplan.ground.collector import RARELY, rare_searches


def test_the_threshold_comes_back_when_the_last_run_ends() -> None:
    """Overlapping runs, the first one ending first: rare until the last has ended, then as before."""
    before = gc.get_threshold()
    first, second = rare_searches(), rare_searches()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] == max(RARELY, before[0])
    second.__exit__(None, None, None)
    assert gc.get_threshold() == before


def test_a_collector_that_is_off_stays_off() -> None:
    """A threshold of 0 means never."""
    before = gc.get_threshold()
    try:
        gc.set_threshold(0, *before[1:])
        with rare_searches():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)
