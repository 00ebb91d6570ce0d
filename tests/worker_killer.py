"""A task for sweeps that takes its worker process down; a module of its own, so that workers load little."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from kvplan.scenario.schema import Scenario
from kvplan.search.point_row import Row, error_row


class Killer(NamedTuple):
    """Ends the process at one batch size: the first time only, or whenever it runs."""

    folder: Path
    seqs: int
    forever: bool

    def __call__(self, scenario: Scenario) -> Row:
        mark = self.folder / "died"
        if scenario.engine.max_num_seqs == self.seqs and (self.forever or not mark.exists()):
            mark.touch()
            os._exit(1)
        return error_row("") | {"num_gpus": scenario.engine.max_num_seqs}
