"""Can it be believed: profiles with source, range and error; fitting one's own; a real run beside its simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st

from kvplan.calibrate.build import build
from kvplan.calibrate.fit.predictions import Predicted, predictions
from kvplan.calibrate.measurements import read_measurements
from kvplan.charts import fits as charts
from kvplan.files import measurements_dir
from kvplan.observed.recorded_run import RunComparison, compare_runs, read_run
from kvplan.pages.jobs import Progress, Work
from kvplan.pages.uploads import through_files
from kvplan.pages.widgets import BIND, chart, guarded, run_box
from kvplan.profiles.profile import Profile, bundled_profiles, profile_json
from kvplan.simulation.observer import Observer

File = tuple[str, bytes]


class Fit(NamedTuple):
    """A fitted profile, and its rows both ways."""

    profile: Profile
    rows: list[Predicted]


def render(is_open: bool) -> None:
    """The whole tab; its bound inputs even when it is closed."""
    names = [profile.name for profile in bundled_profiles()]
    name = st.selectbox("Profile", names, index=names.index("h100-sxm-vllm"), key="profile", **BIND)
    if not is_open:
        return
    profile = next(profile for profile in bundled_profiles() if profile.name == name)
    _errors(profile)
    _kernels(profile)
    _range(profile)
    guarded(_fit)
    guarded(_real_run)


def _errors(profile: Profile) -> None:
    """What one profile rests on, and how wrong it is."""
    timing = profile.timing
    st.markdown(
        f"**{profile.name}**: {profile.gpu or 'no card of the GPU table'}, {profile.engine} {profile.engine_version}"
    )
    st.caption(f"Source: {profile.source}" + (f" ({profile.licence})" if profile.licence else ""))
    if timing is None:
        st.info("This profile holds no step times.")
        return
    st.subheader("Error on points the fit had not seen")
    chart(charts.profile_errors([profile]), f"errors_{profile.name}")
    st.caption(
        f"Fitted to {timing.num_points:,} measured points; each was predicted by a fit that had not seen it."
    )


def _range(profile: Profile) -> None:
    """Where it was measured, and what was not."""
    timing = profile.timing
    if timing is None:
        return
    st.subheader("Measured range")
    st.table(
        [{"what": what, "from": f"{low:,.0f}", "to": f"{high:,.0f}"} for what, (low, high) in timing.ranges.items()],
        hide_index=True, width="content",
    )  # fmt: skip
    st.caption("A result outside this range says so.")
    if timing.assumed:
        with st.expander("Assumed, not measured"):
            st.table(
                [{"coefficient": f"`{k}`", "why": why} for k, why in timing.assumed.items()], hide_index=True
            )


def _kernels(profile: Profile) -> None:
    """Which kernels the profile took as measured, and how they stand beside the data sheet."""
    if profile.timing is None or not profile.timing.kernels:
        return
    st.subheader("Kernels as measured")
    st.table(
        [
            {"kernels": f"`{name}`", "from": source.version, "points": f"{source.num_points:,}",
             "refused": source.refused, "of the data sheet": f"{source.share:.2f}" if source.share else "",
             "why, and what looks wrong": source.why}
            for name, source in profile.timing.kernels.items()
        ],
        hide_index=True,
    )  # fmt: skip


def _fit() -> None:
    """Measurements in, a profile out, in place."""
    st.subheader("Fit your own measurements", divider="gray")
    file = st.file_uploader(
        "Measurements (JSONL; the format is calibration/README.md)",
        type="jsonl",
        max_upload_size=2,
        key="measured",
    )
    known = {path.name: path for path in sorted(measurements_dir().glob("*.jsonl"))}
    example = known.get(
        st.selectbox("or measurements that come with kvplan", ("none", *known), key="measurements", **BIND)
    )
    chosen = (
        (file.name, file.getvalue()) if file else (example.name, example.read_bytes()) if example else None
    )
    if chosen is None:
        return
    fit = run_box("fit", chosen, _fit_work(chosen), "Fit")
    if fit is not None:
        _show_fit(fit)


def _fit_work(file: File) -> Work:
    def read(path: Path) -> Fit:
        profile = build([path])
        assert profile.timing is not None
        return Fit(profile, predictions(read_measurements([path]), profile.timing))

    def run(progress: Progress, observer: Observer) -> Fit:
        return through_files(read, file)

    return run


def _show_fit(fit: Fit) -> None:
    timing = fit.profile.timing
    assert timing is not None
    chart(charts.predicted_measured([row._asdict() for row in fit.rows]), "fit")
    st.dataframe([error.model_dump() for error in timing.errors], hide_index=True)
    st.download_button(
        "Download the profile",
        profile_json(fit.profile),
        f"{fit.profile.name}.json",
        key="fitted",
    )


def _real_run() -> None:
    """A real run beside a simulation of the same requests."""
    st.subheader("A real run beside its simulation", divider="gray")
    left, right = st.columns(2)
    real = left.file_uploader(
        "Real: vllm bench serve --save-detailed, or CSV",
        type=["json", "jsonl", "csv"],
        max_upload_size=2,
        key="real",
    )
    ours = right.file_uploader(
        "Simulated: kvplan simulate --records", type=["csv", "jsonl"], max_upload_size=2, key="simulated"
    )
    if real is None or ours is None:
        return
    found = _compare((f"real-{real.name}", real.getvalue()), (f"simulated-{ours.name}", ours.getvalue()))
    st.dataframe(found.to_dict()["figures"], hide_index=True)
    chart(charts.run_comparison(found), "real_run")


def _compare(real: File, ours: File) -> RunComparison:
    def read(a: Any, b: Any) -> RunComparison:
        return compare_runs(read_run(a), read_run(b))

    return through_files(read, real, ours)
