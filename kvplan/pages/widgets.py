"""What the tabs share: inputs that hold links to their word, charts, complaints, figures in a row."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from string import punctuation
from tempfile import gettempdir
from typing import Any, NamedTuple, TypeVar

import streamlit as st

from kvplan.charts.drawing import Layered, specification
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import PACKAGE
from kvplan.pages import links
from kvplan.pages.asked import Asked
from kvplan.pages.jobs import DRAW, read_apart
from kvplan.pages.links import BIND
from kvplan.pages.uploads import check_size
from kvplan.pages.work import picture_of
from kvplan.scenario.schema import Scenario, dump_scenario

T = TypeVar("T")
LONGEST_COMPLAINT = 1000
"""Characters: who pasted a book is not shown it again."""
ESCAPED = re.compile(f"([{re.escape(punctuation)}])")
CODE = re.compile(r"`([^`\n]+)`|(?<!\S)\(?(--[a-z][\w-]*)")
"""What is shown in the font of code: words between backticks, and flags."""


WORD = re.compile(r"[a-z]+ ")
"""A word of a sentence, no key of a scenario."""

# --- inputs ---------------------------------------------------------------------------------------


def text(place: Any, label: str, key: str, value: str = "", **more: Any) -> str:
    """A line of text, as typed."""
    return str(place.text_input(label, value, key=key, max_chars=200, **BIND, **more) or "")


def choice(place: Any, label: str, options: Sequence[Any], key: str, first: Any = None, **more: Any) -> Any:
    """One of several."""
    links.check(key, options)
    at = 0 if first is None else list(options).index(first)
    return place.selectbox(label, options, index=at, key=key, **BIND, **more)


def switch(place: Any, label: str, key: str, value: bool = False, **more: Any) -> bool:
    """On or off."""
    links.check_switch(key)
    return bool(place.toggle(label, value=value, key=key, **BIND, **more))


def changes(place: Any, label: str, key: str, example: str) -> tuple[str, ...]:
    """Lines of key=value."""
    told = place.text_area(label, key=key, max_chars=4000, height="content", placeholder=example, **BIND)
    return tuple(line.strip() for line in str(told or "").splitlines() if line.strip())


# --- words ----------------------------------------------------------------------------------------


def plain(told: str) -> str:
    r"""Markdown that shows any text as it is: no link, picture, formula, emphasis, emoji or second line.

    >>> plain("![x](http://a.b) $1")
    '\\!\\[x\\]\\(http\\:\\/\\/a\\.b\\) \\$1'
    """
    return ESCAPED.sub(r"\\\1", " ".join(told.split()))


def marked(told: str) -> str:
    """The same, with flags and what stands between backticks in the font of code."""
    told, shown, at = " ".join(told.split()), "", 0
    for found in CODE.finditer(told):
        which = 1 if found[1] is not None else 2
        shown += ESCAPED.sub(r"\\\1", told[at : found.start(which)].removesuffix("`")) + f"`{found[which]}`"
        at = found.end()
    return shown + ESCAPED.sub(r"\\\1", told[at:])


def breakable(told: str) -> str:
    """A long name that may be broken behind its brackets and underscores: a narrow table then shows more than it.

    >>> breakable("best_of_n(n=4)").split("\\u200b")
    ['best_', 'of_', 'n(', 'n=4)']
    """
    return re.sub(r"([(_])(?=\w)", "\\1\u200b", told)


def plain_money(told: str) -> str:
    """Dollars in a table of Markdown, where two of them would be a formula."""
    return told.replace("$", "\\$")


def refuse(told: str, place: Any = st) -> None:
    """A user's mistake, in one line of bounded length that names no place of the server."""
    for root in (str(PACKAGE.parent), gettempdir(), str(Path.home())):
        told = re.sub(re.escape(root) + r"(/[^\s:'\",]*)?/", "", told)
    told = told if len(told) <= LONGEST_COMPLAINT else told[:LONGEST_COMPLAINT] + " ..."
    place.error(marked(told), icon=":material/error:")


def guarded(show: Callable[[], None]) -> None:
    """A user's mistake is one line, wherever it is noticed."""
    try:
        show()
    except KvplanError as error:
        refuse(str(error))


def or_complaint(read: Callable[[], T]) -> T | str:
    """What a tab's inputs stand for, or what is wrong with them."""
    try:
        return read()
    except KvplanError as error:
        return str(error)


def shown_ms(value: float | None) -> str:
    """A time of so many milliseconds as people read it, three digits and a unit.

    >>> shown_ms(3359.21), shown_ms(49.85), shown_ms(128_600), shown_ms(1.6e6), shown_ms(None)
    ('3.36 s', '49.9 ms', '129 s', '26.7 min', '-')
    >>> shown_ms(43.02), shown_ms(2300), shown_ms(0)
    ('43.0 ms', '2.30 s', '0 ms')
    """
    if value is None:
        return "-"
    for unit, size, until in (
        ("ms", 1.0, 999.5),
        ("s", 1e3, 599_500.0),
        ("min", 6e4, 7.2e6),
        ("h", 3.6e6, float("inf")),
    ):
        if value < until:
            return f"{digits(value / size, '#') if value else 0} {unit}"
    raise AssertionError(value)


def digits(value: float, zeros: str = "") -> str:
    """Three digits that count, thousands whole. `zeros`: # keeps the last ones.

    >>> digits(0.0123), digits(3.3592), digits(128.6), digits(397008.2)
    ('0.0123', '3.36', '129', '397,008')
    """
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:{zeros}.3g}"


def span(low: float, high: float, shown: Callable[[float], str]) -> str:
    """A range, its unit once; nothing where both ends read alike.

    >>> span(35.5, 71, shown_ms), span(900, 1100, shown_ms), span(3.2, 3.2001, digits)
    ('35.5 to 71.0 ms', '900 ms to 1.10 s', '')
    """
    first, last = shown(low), shown(high)
    if first == last:
        return ""
    number, space, unit = first.partition(" ")
    return f"{number if space and last.endswith(space + unit) else first} to {last}"


def about(seconds: float | None) -> str:
    """How long something takes, no more exact than it is known."""
    if seconds is None or seconds == float("inf"):
        return "an unknown time"
    for unit, size, until in (("s", 1.0, 90.0), ("min", 60.0, 5400.0), ("h", 3600.0, float("inf"))):
        if seconds < until:
            value = seconds / size
            return f"about {max(1, round(value)) if value < 10 else 5 * round(value / 5)} {unit}"
    raise AssertionError(seconds)


# --- results --------------------------------------------------------------------------------------


def chart(figure: Layered, key: str, told: str = "") -> None:
    """Show a chart at the width there is, its key above it; `told`: what it shows, for who does not see it."""
    spec = specification(figure)
    colours = key_of(spec)
    if colours:
        marks = "".join(
            f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in colours.items()
        )
        st.html(f'<ul class="key">{marks}</ul>')
    st.vega_lite_chart(spec, width="stretch", key=key, alt=told or None)


def key_of(spec: dict[str, Any]) -> dict[str, str]:
    """Take a chart's legend out of it: as text of the page it breaks into as many lines as a phone needs."""
    found: dict[str, str] = {}
    for layer in spec.get("layer", [spec]):
        colour = layer.get("encoding", {}).get("color", {})
        scale = colour.get("scale", {})
        if isinstance(scale, dict) and "domain" in scale and "legend" in colour:
            found |= dict(zip(scale["domain"], scale["range"], strict=False))
            colour["legend"] = None
    return found


def rows_of(rows: Sequence[Mapping[str, Any]]) -> None:
    """A wide table of a result's own columns, figures as people read them: shares in per cent, thousands apart."""
    names = dict.fromkeys(name for row in rows for name in row)
    st.dataframe(rows, hide_index=True, column_config={name: _column(name, rows) for name in names})


SHARES = re.compile(r"accuracy|share|fraction|median|p9[05]|bias|error|.*_error")


def _column(name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    label, values = name.replace("_", " "), [row[name] for row in rows if row.get(name) is not None]
    if not values or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return st.column_config.Column(label)
    if SHARES.match(name) and all(abs(v) <= 1 for v in values):
        return st.column_config.NumberColumn(label, format="percent")
    whole = all(isinstance(v, int) for v in values)
    if whole and max(values) >= 1e9:
        return st.column_config.NumberColumn(label, format="compact")
    return st.column_config.NumberColumn(label, format="localized" if whole else "%.4g")


class ShownFigure(NamedTuple):
    """A number worth its size."""

    label: str
    value: str
    beside: str = ""
    """Its range, or what it is of."""
    help: str | None = None


def figures(row: Iterable[ShownFigure]) -> None:
    """Figures in a row; two beside each other on a phone."""
    with st.container(horizontal=True, gap="small"):
        for one in row:
            st.metric(
                one.label,
                one.value,
                one.beside or None,
                delta_color="off",
                delta_arrow="off",
                help=one.help,
                width=168,
            )


def pictures(drawn: Mapping[str, Layered], name: str) -> None:
    """Charts to take away, as SVG and PNG."""
    with st.container(horizontal=True, gap="small"):
        for what, figure in drawn.items():
            for kind in ("svg", "png"):
                st.download_button(
                    f"{what} ({kind.upper()})", partial(_picture, figure, kind), f"kvplan-{name}-{what}.{kind}",
                    key=f"{name}_{what}_{kind}", on_click="ignore",
                )  # fmt: skip


def _picture(figure: Layered, kind: str) -> bytes:
    """Drawn in a process of its own: the library brings a whole browser's engine."""
    drawn: bytes = read_apart(picture_of, specification(figure), kind, bounds=DRAW)
    return drawn


def command(line: str) -> None:
    """A command to copy, broken between its words where it is long."""
    st.code(broken(line), language="bash", wrap_lines=True)


def broken(line: str, most: int = 48) -> str:
    r"""A shell command in lines of at most so many characters, as far as its words allow; a flag keeps its value.

    >>> print(broken("vllm serve a/b --max-model-len 24576 -tp 2", 28))
    vllm serve a/b \
      --max-model-len 24576 \
      -tp 2
    """
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    if len(line) <= most or shlex.join(words) != line:
        return line
    parts: list[list[str]] = []
    for word in words:
        is_value = parts and parts[-1][-1].startswith("-") and "=" not in parts[-1][-1]
        if is_value and not word.startswith("-"):
            parts[-1].append(word)
        else:
            parts.append([word])
    lines = [shlex.join(parts[0])]
    for part in map(shlex.join, parts[1:]):
        if len(lines[-1]) + len(part) + 3 <= most:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}")
    return " \\\n".join(lines)


def lines(said: Iterable[str]) -> None:
    """Small print, a sentence each."""
    st.caption("  \n".join(marked(sentence(one)) for one in said))


def sentence(told: str) -> str:
    """A remark as a sentence: a capital where it begins with a word, a full stop.

    >>> sentence("nothing was loaded"), sentence("kv_cache_dtype: fp8"), sentence("So it is.")
    ('Nothing was loaded.', 'kv_cache_dtype: fp8.', 'So it is.')
    """
    told = told.strip()
    if WORD.match(told):
        told = told[0].upper() + told[1:]
    return told if told.endswith((".", "!", "?", ":")) else f"{told}."


QUESTION, BUNDLED, FILE = "The question", "Bundled scenario", "Your scenario"
UPLOADED = "uploaded.yaml"


class ScenarioSource(NamedTuple):
    """Where a tab's scenario comes from."""

    kind: str
    name: str = ""
    changes: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()


def source_of(
    key: str, names: Sequence[str], first: str, example: str, kinds: Sequence[str] = (QUESTION, BUNDLED, FILE)
) -> ScenarioSource:
    """Inputs that choose a scenario. `key`: of the bundled one's name; others are KEY_source, KEY_set, KEY_file."""
    links.check(f"{key}_source", kinds)
    kind = st.segmented_control(
        "What",
        kinds,
        default=kinds[0],
        required=True,
        key=f"{key}_source",
        label_visibility="collapsed",
        **BIND,
    )
    if kind == QUESTION:
        return ScenarioSource(QUESTION)
    left, right = st.columns(2)
    if kind == BUNDLED:
        name = str(choice(left, "Scenario", names, key, first))
        return ScenarioSource(
            BUNDLED, name, changes(right, "Changes, a key=value a line", f"{key}_set", example)
        )
    file = left.file_uploader("A scenario file", type=["yaml", "yml"], max_upload_size=2, key=f"{key}_file")
    told = changes(right, "Changes, a key=value a line", f"{key}_set", example)
    return ScenarioSource(FILE, UPLOADED, told, () if file is None else ((UPLOADED, file.getvalue()),))


def read_source(
    read: Callable[..., Scenario],
    source: ScenarioSource,
    asked: Asked | None,
    more: tuple[tuple[str, bytes], ...] = (),
) -> Scenario | None:
    """The scenario; None while a file is still to come. Raises KvplanError. Equal ones are read once."""
    if source.kind == FILE and not source.files:
        return None
    for name, content in (*source.files, *more):
        check_size(name, content)
    return _scenario(read, source.name, asked, source.changes, (*source.files, *more), read.__name__)


@st.cache_data(max_entries=16, show_spinner=False)
def _scenario(
    _read: Callable[..., Scenario], name: str, asked: Asked | None, told: tuple[str, ...],
    files: tuple[tuple[str, bytes], ...], which: str = "",
) -> Scenario:  # fmt: skip
    """In the server's own process only what no stranger wrote."""
    everything = {**dict(files), **(asked.files if asked else {})}
    arguments = (name, asked, told, tuple(everything))
    found: Scenario = (
        read_apart(_read, *arguments, files=everything) if everything or told else _read(*arguments)
    )
    return found


def scenario_to_copy(scenario: Scenario | str, title: str, line: str, key: str) -> Scenario | None:
    """Show a scenario as a file, or what is wrong with it; return it if it is one."""
    if isinstance(scenario, str):
        refuse(scenario)
        return None
    with st.expander(title):
        command(line)
        st.code(dump_scenario(scenario), language="yaml")
        st.download_button(
            "Scenario (YAML)", dump_scenario(scenario), f"{scenario.name or 'scenario'}.yaml",
            key=f"{key}_yaml", on_click="ignore",
        )  # fmt: skip
    return scenario
