"""Start-up logs of vLLM, SGLang and TensorRT-LLM, read into figures, flags and names.

`reader`, `figures`, `flags` and `startup` know no planner; `question`, `pool`, `explain`, `learn` and `report` set what
they read beside one, for `kvplan.observed.reconciliation`.
"""

from kvplan.observed.reader import file_lines
from kvplan.observed.startup import StartupLog, read_log

__all__ = ["StartupLog", "file_lines", "read_log"]
