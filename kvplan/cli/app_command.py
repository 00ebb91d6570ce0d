"""`kvplan app`: the planner in a browser, from any installation."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from kvplan.ground.errors import KvplanError
from kvplan.ground.files import app_file

SETTINGS = {
    "server.maxUploadSize": "2",
    "server.maxMessageSize": "8",
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.disconnectedSessionTTL": "60",
    "runner.postScriptGC": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",
    "theme.light.primaryColor": "#0072B2",
    "theme.dark.primaryColor": "#56B4E9",
}
"""Of Streamlit; `.streamlit/config.toml` says the same for `streamlit run app.py` in a checkout."""

MEMORY = {
    "PYTHONMALLOC": "malloc",
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
}
"""Of glibc: a server of many threads gives back what visitors needed.

Python's own allocator gives back a MiB at a time, once nothing in it is used: after twenty visitors 60 MiB of 150 were
free and kept. glibc's gives back single pages when it is asked, as `kvplan.pages.memory_kept` does: where a little of
each of 500 visits stays, 2 MiB of 59 are kept instead of 55. Only a new process can choose: with the three thresholds
alone, which a process can set for itself, it is 55 too. So who serves many runs this command, not `streamlit run`.
"""


def app_command(*, port: int = 8501, address: str = "localhost", browser: bool = False) -> int:
    """Open the planner in a browser: one question, its verdict, and a tab for each way to look at it.

    Needs the `app` extra: pip install 'kvplan[app]'. Ctrl-C ends it.

    For example:

        kvplan app

        kvplan app --port 8080 --address 0.0.0.0

    Parameters
    ----------
    port
        Where it listens.
    address
        localhost: for this machine only; 0.0.0.0: for everybody who reaches it.
    browser
        Open a browser window.
    """
    for name in ("streamlit", "altair"):
        if find_spec(name) is None:
            raise KvplanError(f"the app needs {name}: pip install 'kvplan[app]'")
    if not 1 <= port <= 65535:
        raise KvplanError(f"--port {port}: 1 to 65535")
    settings = SETTINGS | {
        "server.port": str(port),
        "server.address": address,
        "server.headless": str(not browser).lower(),
    }
    words = ["run", str(app_file()), *(f"--{name}={value}" for name, value in settings.items())]
    memory = MEMORY if platform.libc_ver()[0] == "glibc" else {}
    return _serve([sys.executable, "-m", "streamlit", *words], {**memory, **os.environ})


def _serve(words: Sequence[str], env: Mapping[str, str]) -> int:
    """Run the server; who ends the command ends it too, as a container does."""
    with subprocess.Popen(words, env=env) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        return server.wait()
