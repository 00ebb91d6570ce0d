"""Settings of all tests.

The same examples at every run, so that a failure belongs to the change at hand; `make explore` draws new ones.
"""

import os

from hypothesis import settings

# How long an example takes is the machine's affair.
settings.register_profile("kvplan", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "kvplan"))
