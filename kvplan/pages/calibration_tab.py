"""Can it be believed: profiles with source, range and error; fitting one's own; a real run beside its simulation."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from kvplan.charts import fits as charts
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import measurements_dir
from kvplan.observed.recorded_run import RunComparison
from kvplan.pages import links
from kvplan.pages.asked import Asked
from kvplan.pages.jobs import read_apart
from kvplan.pages.running import run_box
from kvplan.pages.uploads import check_size
from kvplan.pages.widgets import chart, choice, guarded, lines, rows_of
from kvplan.pages.work import Fit, compare_two, fit_work
from kvplan.profiles.profile import Profile, bundled_profiles, pick, profile_json

File = tuple[str, bytes]
OF_QUESTION = "of the question's card and engine"
NONE = "none"


def inputs(asked: Asked | str) -> str:
    """The profile that is looked at."""
    names = [OF_QUESTION, *(profile.name for profile in bundled_profiles())]
    links.check("measurements", (NONE, *_bundled()))
    return str(choice(st, "Profile", names, "profile"))


def render(asked: Asked, name: str) -> None:
    """The whole tab."""
    guarded(lambda: _profile(asked, name))
    guarded(_fit)
    guarded(_real_run)


def _profile(asked: Asked, name: str) -> None:
    """What one profile rests on."""
    if name == OF_QUESTION:
        profile, doubt = pick(asked.card.name, asked.engine)
        lines(
            [
                f"Taken from the question: {asked.card.name}, {asked.engine}."
                + (f" {doubt[0].upper()}{doubt[1:]}." if doubt else "")
            ]
        )
        if profile is None:
            st.info(
                "No profile times this card: a like card's is scaled by data sheets. Measurements make one, below."
            )
            return
    else:
        profile = next(profile for profile in bundled_profiles() if profile.name == name)
        lines(["Taken from the question: nothing; the profile is chosen here."])
    _errors(profile)
    _kernels(profile)
    _range(profile)


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
    chart(
        charts.profile_errors([profile]), f"errors_{profile.name}", "Held-out error by regime, median to p95"
    )
    st.caption(
        f"Fitted to {timing.num_points:,} measured points; each was predicted by a fit that had not seen it."
    )


RANGES = {
    "num_decodes": "requests that decode in a step",
    "mean_context": "their context, tokens on average",
    "chunk_tokens": "prompt tokens in a step",
}


def _range(profile: Profile) -> None:
    """Where it was measured, and what was not."""
    timing = profile.timing
    if timing is None:
        return
    st.subheader("Measured range")
    st.table(
        [{"what": RANGES.get(what, what.replace("_", " ")), "from": f"{low:,.0f}", "to": f"{high:,.0f}"}
         for what, (low, high) in timing.ranges.items()],
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
    with st.container(key="kernels"):
        st.table(
            [
                {
                    "kernels": f"`{name}`",
                    "from": source.version,
                    "points": f"{source.num_points:,}",
                    "refused": f"{source.refused:,}",
                    "of the data sheet": f"{source.share:.0%}" if source.share else "",
                    "why, and what looks wrong": source.why,
                }
                for name, source in profile.timing.kernels.items()
            ],
            hide_index=True,
        )


def _fit() -> None:
    """Measurements in, a profile out, in place."""
    st.subheader("Fit your own measurements", divider="gray")
    file = st.file_uploader(
        "Measurements (JSONL; the format is calibration/README.md)",
        type="jsonl",
        max_upload_size=2,
        key="measured",
    )
    known = _bundled()
    example = known.get(
        str(choice(st, "or measurements that come with kvplan", (NONE, *known), "measurements"))
    )
    chosen = (
        (file.name, file.getvalue()) if file else (example.name, example.read_bytes()) if example else None
    )
    if chosen is None:
        return
    check_size(*chosen)
    fit = run_box("fit", chosen, lambda: fit_work(FITTED), "Fit", {FITTED: chosen[1]})
    if fit is not None:
        _show_fit(fit)


FITTED = "measurements.jsonl"


def _bundled() -> dict[str, Path]:
    return {path.name: path for path in sorted(measurements_dir().glob("*.jsonl"))}


def _show_fit(fit: Fit) -> None:
    timing = fit.profile.timing
    assert timing is not None
    chart(
        charts.predicted_measured([row._asdict() for row in fit.rows]),
        "fit",
        "Predicted against measured times",
    )
    rows_of([error.model_dump() for error in timing.errors])
    st.download_button(
        "Profile (JSON)",
        profile_json(fit.profile),
        f"{fit.profile.name}.json",
        key="fitted",
        on_click="ignore",
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
    found = _compare(
        (_safe("real", real.name), real.getvalue()), (_safe("simulated", ours.name), ours.getvalue())
    )
    rows_of(found.to_dict()["figures"])
    chart(charts.run_comparison(found), "real_run", "Simulated against real latencies")


def _safe(which: str, name: str) -> str:
    """A name for the folder where it is read: only how it ends is the visitor's."""
    kind = name.rpartition(".")[2].casefold()
    if kind not in ("json", "jsonl", "csv"):
        raise KvplanError(f"{which}: a .json, .jsonl or .csv file")
    return f"{which}.{kind}"


@st.cache_data(max_entries=8, show_spinner=False)
def _compare(real: File, ours: File) -> RunComparison:
    for name, content in (real, ours):
        check_size(name, content)
    found: RunComparison = read_apart(compare_two, real[0], ours[0], files=dict((real, ours)))
    return found
