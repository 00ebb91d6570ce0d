"""numpy, imported when it is first asked for: a plan of one figure at a time needs none of it.

if TYPE_CHECKING:
    import numpy as np
else:
    from kvplan.formulas import arrays as np
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    import numpy

    return getattr(numpy, name)
