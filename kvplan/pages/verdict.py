"""The answer above all tabs: what `kvplan plan` says once it is known, what memory says at once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Literal

import streamlit as st

from kvplan.ground.errors import KvplanError
from kvplan.pages import form, links
from kvplan.pages.apart import WorkBounds
from kvplan.pages.asked import ENGINES, OWN, Asked
from kvplan.pages.jobs import Job, read_apart
from kvplan.pages.running import STOPPED, early, over, start, under_way
from kvplan.pages.widgets import marked, refuse
from kvplan.pages.work import PlannedMemory, plan_work, planned
from kvplan.search.planning import ServingAnswer

OF_QUESTION = ("Estimate", "Recommend")
"""Tabs that show what the check finds."""
MOST_ANSWERS = 32
"""Remembered of all visitors: equal questions have equal answers."""
_answers: OrderedDict[Asked, ServingAnswer] = OrderedDict()
_lock = threading.Lock()
NOBODY_ASKED = WorkBounds(ask_above_s=float("inf"))
"""Of a run that no single visitor could say yes to."""
_first: dict[Asked, Job] = {}
"""The run that answers what somebody new is shown, for all who come meanwhile."""


def render(asked: Asked) -> PlannedMemory | None:
    """Verdict, and what it rests on; a button that has the targets checked.

    Returns the plan; None where there is none, and the page has said why.
    """
    try:
        found = plan_of(asked)
    except KvplanError as error:
        refuse(str(error))
        return None
    _answered(asked, found)
    return found


def _answered(asked: Asked, found: PlannedMemory) -> None:
    answer = answer_of(asked)
    if answer is None and asked == form.first():
        answer = _first_answer(asked)
    if answer is not None:
        _told(asked, answer, found)
        return
    if found.plan.serves:
        told = marked(f"{memory_line(asked, found)}. {room_line(asked, found)}")
        st.info(f"**At first sight:** {told}", icon=":material/memory:")
    elif asked.is_open:
        on = f"{found.plan.args.num_gpus} x {found.plan.question.gpu.name}"
        st.warning(
            f"**Not on {marked(on)}:** {marked(f'{found.plan.reason}.')}  \nHow many it takes, and at what price, "
            "the check finds.",
            icon=":material/help:",
        )
    else:
        st.error(f"**Does not fit:** {marked(f'{found.plan.reason}.')}", icon=":material/block:")
        return
    if asked in _first and not _first[asked].is_over:
        _wait_for_first(asked)
        return
    ask(asked, check_label(asked), "plan_run")


def check_label(asked: Asked) -> str:
    """What the button says that answers the question in full."""
    return f"Check {asked.question.slo.replace(',', ', ')}"


def ask(asked: Asked, label: str, key: str) -> None:
    """A button that answers the question in full, and how far that is; a link with `run=plan` presses it."""
    state = st.session_state
    is_mine = links.opened_tab() in (None, *OF_QUESTION)  # elsewhere the tab's own run is what one comes for
    kind: Literal["primary", "secondary"] = "primary" if is_mine else "secondary"
    told = "Simulates this load on the cards: seconds to a minute."
    pressed = st.button(label, key=key, type=kind, help=told)
    if pressed or ("plan" in links.told("run") and "plan_job" not in state and not state.get("plan_refused")):
        try:
            start("plan", asked, work_of(asked), asked.files)
        except KvplanError as error:
            state["plan_refused"] = True
            refuse(str(error))
            return
        if answer_of(asked) is not None:
            st.rerun()
    job: Job | None = state.get("plan_job")
    if job is None or state["plan_asked"] != asked:
        return
    if job.wait(0):
        over("plan", asked)
        if cut := early("plan"):
            st.warning(f"{cut}; **Recommend** has them.", icon=STOPPED)
    else:
        under_way("plan")


def answer_of(asked: Asked) -> ServingAnswer | None:
    """The full answer, if anybody has asked just this."""
    state = st.session_state
    job: Job | None = state.get("plan_job")
    if job is not None and state["plan_asked"] == asked and job.state == "done":
        _remember(asked, job.result)
        return job.result  # type: ignore[no-any-return]
    with _lock:
        return _answers.get(asked)


def _remember(asked: Asked, answer: ServingAnswer) -> None:
    if asked.config:  # a visitor's own model stays with the visitor
        return
    with _lock:
        _answers[asked] = answer
        _answers.move_to_end(asked)
        while len(_answers) > MOST_ANSWERS:
            _answers.popitem(last=False)


def _first_answer(asked: Asked) -> ServingAnswer | None:
    """The answer to the first question: asked once, for everybody."""
    with _lock:
        job = _first.get(asked)
        if job is None:
            _first.clear()
            job = _first[asked] = Job(work_of(asked), bounds=NOBODY_ASKED, in_line=False)
    if job.wait(0.3) and job.state == "done":
        _remember(asked, job.result)
    return answer_of(asked)


@st.fragment(run_every=1.0)
def _wait_for_first(asked: Asked) -> None:
    if _first[asked].wait(0):
        st.rerun()
    st.caption(marked(f"Checking {asked.question.slo} for this load, some seconds more."))


def work_of(asked: Asked):  # type: ignore[no-untyped-def]
    """The question as work."""
    return plan_work(asked.model, (asked.gpu, *asked.also), asked.question, asked.settled)


@st.cache_data(max_entries=16, show_spinner=False)
def plan_of(asked: Asked) -> PlannedMemory:
    """The plan in closed form; equal questions are answered once, a stranger's model in a process of its own."""
    found: PlannedMemory = read_apart(planned, asked, files=asked.files) if asked.config else planned(asked)
    return found


def memory_line(asked: Asked, found: PlannedMemory) -> str:
    """How many requests live at once on what the flags take."""
    plan, cards = found.plan, found.plan.args.num_gpus
    (low, high), now = plan.num_traces_range, plan.num_traces
    spread = f" ({low:,} to {high:,})" if low != high else ""
    holds = "holds" if cards == 1 else "hold"
    what = "traces" if asked.num_samples > 1 else "requests"  # samples of one request are traces of their own
    what += " of your model" * (asked.model == OWN)
    return (
        f"{cards} x {plan.question.gpu.name} {holds} {now:,} of the longest {what} at once{spread}, of "
        f"{plan.trace_tokens:,} tokens each, or {found.plan.at_once(found.typical.value):,} typical ones"
    )


def room_line(asked: Asked, found: PlannedMemory) -> str:
    """Whether all users may ask at once; nothing where nobody counted users or cards, or asked of other numbers."""
    users = asked.question.users
    if not users or not asked.cards.number or asked.num_samples * asked.num_requests > 1:
        return ""
    copies = asked.replicas
    longest, typical = (
        copies * found.plan.at_once(span.value) for span in (found.plan.traces, found.typical)
    )
    who = f"all {users:,} users" if users > 1 else "the user"
    if copies > 1:
        who += f" on {copies:,} copies"
    if users <= longest:
        return f"Room for {who} at once, even with the longest."
    if users <= typical:
        return f"Room for {who} at once, while few are of the longest."
    return f"No room for {who} at once: who comes then waits."


def _told(asked: Asked, answer: ServingAnswer, found: PlannedMemory) -> None:
    """The verdict of `kvplan plan`, in its words; what memory holds, where these flags hold anything."""
    text = answer.verdict[0].upper() + answer.verdict[1:]
    head, colon, rest = text.partition(": ")
    said = f"**{marked(head + ':')}** {marked(rest)}."
    if not colon:
        said = f"{marked(text)}."
    below = f"{memory_line(asked, found)}." if found.plan.serves else ""
    if not answer.fits:
        st.error(f"{said}  \n{marked(below)}", icon=":material/block:")
    elif answer.is_sure:
        st.success(f"{said}  \n{marked(below)}", icon=":material/check_circle:")
    else:
        st.warning(f"{said}  \n{marked(below)}", icon=":material/help:")
    if asked.engine == ENGINES[2]:
        st.caption(
            "TensorRT-LLM's requests enter when all of their tokens fit; its memory is vLLM's in this answer."
        )
