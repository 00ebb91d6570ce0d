"""Start-up logs of vLLM, SGLang and TensorRT-LLM, read into figures, flags and names. Knows no planner."""

from kvplan.logs.reader import file_lines
from kvplan.logs.startup import StartupLog, read_log

__all__ = ["StartupLog", "file_lines", "read_log"]
