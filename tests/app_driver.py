"""The app without a browser: open a link, press a button, read what is shown."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pandas as pd
import yaml
from places import ROOT
from streamlit.testing.v1 import AppTest

from kvplan.scenario.schema import Scenario, parse_scenario

APP = ROOT / "app.py"

LOG = """
INFO 09-01 [api_server.py:1896] vLLM API server version 0.11.0
(APIServer pid=1) INFO non-default args: {'model': 'Qwen/Qwen3-32B', 'max_model_len': 16000}
(EngineCore_DP0 pid=22) INFO Model loading took 61.0300 GiB and 5.2 seconds
(EngineCore_DP0 pid=22) INFO [gpu_worker.py:298] Available KV cache memory: 4.45 GiB
(EngineCore_DP0 pid=22) INFO [kv_cache_utils.py:1087] GPU KV cache size: 18,176 tokens
"""
"""What a visitor pastes: a server's start."""


def run(**inputs: object) -> AppTest:
    """The app as a link with these inputs opens it."""
    app = AppTest.from_file(str(APP), default_timeout=120)
    for key, value in inputs.items():
        app.query_params[key] = value if isinstance(value, list) else str(value)
    return calm(app.run())


def calm(app: AppTest) -> AppTest:
    """The app, if nothing failed in it."""
    assert not app.exception, [e.value for e in app.exception]
    assert not any("inside kvplan" in e.value for e in app.error), [e.value for e in app.error]
    return app


def press(app: AppTest, name: str) -> AppTest:
    """Press a tab's button and wait for what it starts."""
    calm(app.button(key=f"{name}_run").click().run())
    return wait(app, name)


def wait(app: AppTest, name: str) -> AppTest:
    """Wait until a run is over."""
    deadline = time.monotonic() + 100
    while is_running(app, name) and time.monotonic() < deadline:
        time.sleep(0.1)
        calm(app.run())
    return calm(app.run())  # it may have ended after the page was drawn


def is_running(app: AppTest, name: str) -> bool:
    """Whether a run is under way, or is ending."""
    state = app.session_state
    return f"{name}_job" in state and not state[f"{name}_job"].is_over


def words(markdown: str) -> str:
    """Text as it is seen: escapes and code marks gone."""
    return re.sub(r"\\(.)", r"\1", markdown).replace("`", "").replace("**", "")


def said(app: AppTest, *kinds: str) -> str:
    """All that boxes or captions of these kinds say."""
    return "\n".join(words(box.value) for kind in kinds for box in getattr(app, kind))


def one_line(app: AppTest) -> str:
    """The only complaint: a line that names no place of the server."""
    assert len(app.error) == 1
    told = words(str(app.error[0].value))
    assert "\n" not in told
    assert "/tmp" not in told
    return told


def dots(app: AppTest) -> pd.DataFrame:
    """The points of the one chart that sets predicted beside measured."""
    layers = [
        layer for chart in app.get("vega_lite_chart") for layer in json.loads(chart.proto.spec)["layer"]
    ]
    rows = [layer.get("data", {}).get("values", [{}]) for layer in layers]
    (found,) = (values for values in rows if "predicted" in values[0])
    return pd.DataFrame(found)


def metrics(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def rows(app: AppTest, title: str) -> dict[str, str]:
    """A table of names and values: the one whose first column has this title."""
    found = [table.value for table in app.table if title == table.value.columns[0]]
    return {
        str(k): str(v) for table in found for k, v in zip(table.iloc[:, 0], table.iloc[:, 1], strict=True)
    }


def codes(app: AppTest, beginning: str) -> list[str]:
    """Commands that are shown, as one line each."""
    shown = (unbroken(str(code.value)) for code in app.code)
    return [line for line in shown if line.startswith(beginning)]


def unbroken(shown: str) -> str:
    """A command that is shown in several lines, as a shell reads it."""
    return re.sub(r" \\\s+", " ", shown)


def widgets(app: AppTest) -> dict[str, Any]:
    """Inputs by key; buttons and uploads are none."""
    fields = ("text_input", "selectbox", "text_area", "toggle")
    kinds = (*fields, "slider", "select_slider", "multiselect", "button_group")
    return {str(widget.key): widget for kind in kinds for widget in app.get(kind)}


def shown_scenario(app: AppTest) -> Scenario:
    """The scenario that the tab offers as a file."""
    return parse_scenario(yaml.safe_load(scenario_text(app)))


def scenario_text(app: AppTest) -> str:
    """The same as text."""
    return next(str(code.value) for code in app.code if str(code.value).startswith(("model:", "name:")))
