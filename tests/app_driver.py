"""The app without a browser: open a link, press a button, read what is shown."""

from __future__ import annotations

import json
import time
from typing import Any

import pandas as pd
import yaml
from places import ROOT
from streamlit.testing.v1 import AppTest

from kvplan.scenario.schema import Scenario, parse_scenario

APP = ROOT / "app.py"


def run(**inputs: object) -> AppTest:
    """The app as a link with these inputs opens it."""
    app = AppTest.from_file(str(APP), default_timeout=120)
    for key, value in inputs.items():
        app.query_params[key] = str(value)
    return calm(app.run())


def calm(app: AppTest) -> AppTest:
    """The app, if it shows no exception."""
    assert not app.exception, [e.value for e in app.exception]
    return app


def press(app: AppTest, name: str) -> AppTest:
    """Press a tab's button and wait for what it starts."""
    calm(app.button(key=f"{name}_run").click().run())
    deadline = time.monotonic() + 100
    while any(button.key == f"{name}_cancel" for button in app.button) and time.monotonic() < deadline:
        time.sleep(0.1)
        calm(app.run())
    return app


def one_line(app: AppTest) -> str:
    """The only complaint: a line that names no place of the server."""
    assert len(app.error) == 1
    told = str(app.error[0].value)
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


def widgets(app: AppTest) -> dict[str, Any]:
    """Inputs by key; buttons and uploads are none."""
    fields = ("number_input", "selectbox", "text_area", "toggle")
    kinds = (*fields, "slider", "select_slider", "multiselect", "button_group")
    return {str(widget.key): widget for kind in kinds for widget in app.get(kind)}


def shown_scenario(app: AppTest) -> Scenario:
    """The scenario that the tab offers as a file."""
    return parse_scenario(yaml.safe_load(app.code[0].value))
