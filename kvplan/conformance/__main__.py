"""`python -m kvplan.conformance`: what `kvplan conformance` does, without the rest of the command line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser

from kvplan.conformance.command import ABOUT, conform
from kvplan.conformance.twins import ENGINES
from kvplan.ground.errors import KvplanError
from kvplan.ground.files import patient_streams


def make_parser() -> ArgumentParser:
    """Return the command line."""
    parser = ArgumentParser(prog="python -m kvplan.conformance", description=ABOUT)
    parser.add_argument(
        "paths",
        nargs="*",
        default=None,
        metavar="PATH",
        help="a scenario (JSON), or logs and folders of them",
    )
    parser.add_argument("--engine", choices=ENGINES, default="vllm", help="whose scheduler (vllm)")
    parser.add_argument("--engine-version", help="of the engine (vllm: 0.32; sglang: 0.5.23)")
    parser.add_argument(
        "--async", "--overlap", dest="is_async", action="store_true",
        help="asynchronous scheduling; SGLang's overlap loop",
    )  # fmt: skip
    parser.add_argument("--leap", action="store_true", help="vLLM's leaping scheduler; no block counts then")
    parser.add_argument("--truth", help="compare logs with the goldens of this folder, not with the twin")
    parser.add_argument("-o", "--output", help="write the log there and print the totals only")
    parser.add_argument("--summary", action="store_true", help="print the totals only")
    parser.add_argument("--json", action="store_true", help="verdicts as one JSON document")
    return parser


def main() -> int:
    """Run the command; errors are one line, and the exit code stands when nobody reads the log to its end."""
    with patient_streams():
        return _main()


def _main() -> int:
    try:
        options = vars(make_parser().parse_args(sys.argv[1:]))
        code = conform(options.pop("paths") or (), **options)
        sys.stdout.flush()
    except KvplanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 2
    return code


if __name__ == "__main__":
    sys.exit(main())
