"""The closed forms under their public name: `from kvplan.capacity import kv_bytes_per_token`.

They live, and are explained, in `kvplan.formulas.capacity`.
"""

from kvplan.formulas import capacity as _capacity
from kvplan.formulas.capacity import *  # noqa: F403

__all__ = _capacity.__all__
