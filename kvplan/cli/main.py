"""The `kvplan` command: which commands there are, and how errors become one line and an exit code.

Flags come from the config classes (cyclopts reads pydantic models; their field docstrings are the help). A
command is a function in the file of the room it asks, imported when it is called, so that a cold start stays short.
Exit codes: 0 fits or done, 1 does not fit or a target is missed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter, UnknownOptionError
from pydantic import ValidationError

import kvplan
from kvplan.ground.config import complaint
from kvplan.ground.errors import DoesNotFit, KvplanError, did_you_mean
from kvplan.ground.files import patient_streams

COMMANDS = {
    "plan": (
        "plan_command:plan_command",
        "One question: does it work, what to run, what it costs, how sure.",
    ),
    "app": ("app_command:app_command", "The planner in a browser."),
    "estimate": ("memory_commands:estimate_command", "Does it fit: memory, blocks, traces at once."),
    "serve-command": ("memory_commands:serve_command", "The command that serves a plan; shell or YAML."),
    "simulate": (
        "simulation_commands:simulate_command",
        "How it behaves: a scenario on a clock, with latencies, preemptions, KV over time.",
    ),
    "compare": (
        "search_commands:compare_command",
        "Which test-time strategy: accuracy, latency, cost per correct answer.",
    ),
    "sweep": ("search_commands:sweep_command", "Many scenarios: a grid over any keys, a row per point."),
    "recommend": (
        "search_commands:recommend_command",
        "What to run: deployments that keep the targets, the cheapest first.",
    ),
    "fit": ("calibration_commands:fit_command", "Step-time profiles from measurements or published kernels."),
    "compare-run": (
        "observed_commands:compare_run_command",
        "A real run beside a simulation of the same requests: signed errors.",
    ),
    "reconcile": (
        "observed_commands:reconcile_command",
        "A real engine's start-up log beside the plan; learns its overheads.",
    ),
    "why": (
        "observed_commands:why_command",
        "Why an engine does not start, holds too little or waits; the flags that mend it.",
    ),
    "watch": (
        "watch_command:watch_command",
        "A live vLLM beside its plan: KV, queue, preemptions, tokens, when it is full; limits for CI.",
    ),
    "calibrate": (
        "calibration_commands:calibrate_command",
        "Measure this card, or a live server, and fit a profile.",
    ),
    "conformance": (
        "conformance_commands:conformance_command",
        "Scenarios as vLLM or SGLang schedules them, and logs held to that.",
    ),
    "list": ("list_commands:list_command", "Everything that has a name, by kind."),
    "show": ("list_commands:show_command", "What a name stands for: parameters, defaults, source."),
    "models": ("catalog_commands:models_command", "Bundled models."),
    "gpus": ("catalog_commands:gpus_command", "The GPU table."),
    "support": (
        "catalog_commands:support_command",
        "Whether a model, a card, an engine are planned, and how checked.",
    ),
}
"""Name -> (module of this room:function, a line for the list of commands); imported when called. Add a command here."""

LONGEST = 700
"""Characters of a complaint; what a user typed may be longer than one wants to read again."""

FAMILIAR = {
    "--context": "--max-model-len",
    "--context-length": "--max-model-len",
    "--ctx-size": "--max-model-len",
    "--max-seq-len": "--max-model-len",
    "--max-context": "--max-model-len",
    "--batch-size": "--max-num-seqs",
    "--max-batch-size": "--max-num-seqs",
    "--concurrency": "--users",
    "--kv-dtype": "--kv-cache-dtype",
    "--cache-type-k": "--kv-cache-dtype",
    "--tp-size": "-tp",
    "--num-gpus": "-tp",
    "--prompt-len": "--input-len",
    "--max-tokens": "--output-len",
}
"""Words of other tools -> what is meant by them here."""

EXAMPLES = """KV-cache memory planner and serving simulator for long reasoning traces.

For example:

    kvplan plan Qwen/QwQ-32B --gpu 2xh100 --users 500 --thinking 32K

    kvplan estimate Qwen/Qwen3-8B --gpu h100 --input-len 512 --output-len 16K --num-samples 32

    kvplan estimate ./config.json --gpu rtx-4090 --max-model-len -1 --json

    kvplan serve-command Qwen/Qwen3-8B --gpu h100 -tp 2 --format yaml

    kvplan simulate long_thinking
"""


def build_app(called: str = "") -> App:
    """The command tree; no command's module is imported yet. The one `called` speaks for itself, by its docstring."""
    read = Parameter(show_default=_shown, negative_iterable="")
    app = App(name="kvplan", help=EXAMPLES, version=kvplan.__version__, default_parameter=read)
    for name, (target, summary) in COMMANDS.items():
        app.command(f"kvplan.cli.{target}", name=name, **({} if name == called else {"help": summary}))
    if called not in COMMANDS:
        app.register_install_completion_command(name="--install-completion")
    return app


def _shown(default: object) -> str | None:
    """A default as help says it; none for what is empty."""
    return None if default in (None, (), "") else str(default)


def spell(words: Sequence[str]) -> list[str]:
    """Write out vLLM's short flags, and underscores as dashes, as vLLM's own parser does.

    >>> spell(["estimate", "m", "-tp=2", "--max_model_len", "8k"])
    ['estimate', 'm', '--tensor-parallel-size=2', '--max-model-len', '8k']
    """
    spelled: list[str] = []
    for i, word in enumerate(words):
        if word == "--":  # an engine's command stands behind it
            return [*spelled, *words[i:]]
        flag, equals, value = word.partition("=")
        spelled.append((flag.replace("_", "-") if flag.startswith("--") else _long(flag)) + equals + value)
    return spelled


def _long(word: str) -> str:
    """The flag of vLLM's that a short one stands for; any other word as it is."""
    if not re.fullmatch(r"-[a-z]{1,3}", word):
        return word
    from kvplan.engines.flags import EngineArgs
    from kvplan.engines.vllm_parser import short_flags

    long = short_flags().get(word, "")
    return f"--{long}" if long.replace("-", "_") in EngineArgs.model_fields else word


def run(words: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors go to stderr in one line.

    The code is the answer's, also where nobody reads it to its end (`| head`).
    """
    with patient_streams():
        return _run(words)


def _run(words: Sequence[str]) -> int:
    try:
        app = build_app(words[0] if words else "")
        result = app(spell(words), exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()  # a full disk shows here, not when Python ends
    except ValidationError as error:
        return _complain(complaint(error, flag=True), 2)
    except CycloptsError as error:
        return _complain(_cyclopts_complaint(error), 2)
    except DoesNotFit as error:
        return _complain(str(error), 1)
    except KvplanError as error:
        return _complain(str(error), 2)
    except (KeyboardInterrupt, SystemExit) as stop:  # cyclopts turns the first into the second
        code = 130 if isinstance(stop, KeyboardInterrupt) else stop.code
        return _complain("interrupted", 130) if code == 130 else int(code or 0)
    except OSError as error:
        return _complain(f"{error.filename or 'output'}: {error.strerror or error}", 2)
    return result if isinstance(result, int) else 0


def _cyclopts_complaint(error: CycloptsError) -> str:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return complaint(cause, flag=True)
    if isinstance(cause, KvplanError):
        return str(cause)
    if isinstance(error, UnknownOptionError):
        return _unknown_option(error)
    text = " ".join(str(error).split())
    unused = text.removeprefix("Unused Tokens: [").removesuffix("].")
    return (
        f"unexpected argument {unused}; see kvplan COMMAND --help"
        if text.startswith("Unused Tokens: [")
        else text
    )


def _unknown_option(error: UnknownOptionError) -> str:
    asked = (error.token.keyword or error.token.value).partition("=")[0]
    known = [name for argument in error.argument_collection if argument.parse for name in argument.names]
    meant = FAMILIAR.get(asked, asked.removeprefix("-"))
    if meant in known or _long(meant) in known:
        return f"unknown option {asked}; did you mean {meant}?"
    return f"unknown option {asked}{did_you_mean(asked, known, limit=1)}"


def _complain(text: str, code: int) -> int:
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"
    print(f"kvplan: {text}", file=sys.stderr)
    return code
