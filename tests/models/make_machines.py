"""What vLLM makes of flags about several machines: refusals, replicas of a command, who spreads requests, API servers.

Run where `vllm_meta.py` runs: `python tests/models/make_machines.py`. Each case is a command line behind `vllm serve
MODEL`; it goes through vLLM's own parser and `ServeSubcommand.cmd`, whose servers are replaced by the config they would
build, on a machine of eight cards.
"""

from __future__ import annotations

import copy
import json
import os
import random
from pathlib import Path
from typing import Any

import vllm_meta

FIXTURE = Path(__file__).parents[1] / "fixtures" / "machines_vllm_0.32.json"
MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 512,
    "moe_intermediate_size": 128, "num_experts": 32, "num_experts_per_tok": 2, "decoder_sparse_step": 1,
    "vocab_size": 1024, "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "mlp_only_layers": [],
    "norm_topk_prob": True,
}  # fmt: skip
DENSE = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 512, "vocab_size": 1024,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip
SERVERS = (
    *(
        "uvicorn",
        "fastapi",
        "uvloop",
        "starlette",
        "watchfiles",
        "aiohttp",
        "prometheus_fastapi_instrumentator",
    ),
    *("vllm.entrypoints.launchers.api_server.entry", "vllm.entrypoints.launchers.launcher"),
)
"""Imported where HTTP is served, which nobody does here."""
MODELS = {"moe": MOE, "dense": DENSE}
LINES = (
    "",
    "-dp 8",
    "-dp 16 -dpl 8",
    "-dp 16 -dpl 8 -dpr 8 --headless",
    "-dp 16 -dpl 8 -dpr 8",
    "-dp 16 -dpl 8 -dpr 0",
    "-dp 16 -dpl 8 -dph",
    "-dp 16 -dpl 8 -dph -dpr 8",
    "-dp 16 -dpl 8 -dph --headless",
    "-dp 16 -dpl 8 -dph -asc 2",
    "-dp 16 -dpl 8 -asc 2",
    "-dp 16 -dpl 8 -asc 2 --headless",
    "-dp 16 -dpl 17",
    "-dp 16 -dpl 16 -dph",
    "-dp 16 -dpl 16 -dpr 0",
    "-dp 16 -dpl 0",
    "-dp 16 -dpl 0 --headless",
    "-dp 16 -dpl 1 -dph",
    "-dp 16 -dpl 1 -dpr 3",
    "-dp 16 -dpl 1 -dpr 3 --headless",
    "-dp 16 -dpr 0",
    "-dp 16 -dph",
    "-dp 16 -dpl 8 -dpr 16 --headless",
    "-dp 3 -dpl 2 -tp 4",
    "-dp 3 -dpl 1 -dpr 2 -tp 4 --headless",
    "-dp 16 -dpn 3",
    "-dp 16 -dpn 0 -asc 2",
    "-dp 16 -dpn 16",
    "-dp 16 -dpn 3 -dpl 1",
    "-dp 16 -dpn 3 -dpl 8",
    "-dp 16 -dpe",
    "-dp 16 -dpe -dpn 0",
    "-dpe",
    "-dpn 0",
    "-dp 16 -dpe -dph -dpl 8",
    "-dp 16 -dpn 3 -dpr 3",
    "-dp 16 -dpl 8 -dpm",
    "-dp 16 -dpl 8 -dpm -dpr 8",
    "-dp 16 -dpl 8 -dpm -dpr 9",
    "-dp 16 -dpl 8 -dpm -r 1",
    "-dp 16 -dpl 8 -dpm -dpn 3",
    "-dp 16 -dpl 8 -dpm -dph",
    "-dp 16 -dpl 8 -dpm -asc 2",
    "-dp 16 -dpl 7 -dpm",
    "-dp 16 -dpl 1 -dpm",
    "-dp 16 -dpm",
    "-dpl 1",
    "-dpl 2",
    "-dp 16 -n 2",
    "-dp 16 -n 2 -r 1",
    "-dp 16 -n 2 -r 1 --headless",
    "-dp 16 -n 2 -r 2",
    "-dp 16 -n 2 -dpl 8",
    "-dp 16 -n 2 -dpl 8 -r 1 --headless",
    "-dp 16 -n 2 -dpl 4",
    "-dp 16 -n 2 -dpl 16",
    "-dp 16 -n 2 -dph",
    "-dp 16 -n 2 -dph -r 1",
    "-dp 16 -n 16 -dpe",
    "-dp 16 -n 2 -dpe",
    "-dp 16 -n 2 -dpn 3",
    "-dp 2 -n 4 -tp 8",
    "-dp 2 -n 4 -tp 8 -r 3",
    "-dp 2 -n 4 -tp 8 -dpe -r 3",
    "-dp 3 -n 2 -tp 2",
    "-dp 5 -n 2 -tp 2",
    "-dp 5 -n 2 -tp 2 -dpl 2",
    "-dp 4 -n 3 -tp 1",
    "-tp 16 -n 2",
    "-tp 16 -n 2 -dpl 1",
    "-tp 8 -pp 2 -n 2 -r 1 --headless",
    "-dp 16 -n 2 -dpb ray",
    "-dp 16 -dpl 8 -ep --enable-elastic-ep --enable-eplb --eplb-config.use_async=false",
    "-dp 16 -dpl 8 -ep --enable-elastic-ep --enable-eplb --eplb-config.use_async=false -dph",
    "-dp 16 -dpl 8 --enable-fault-tolerance",
    "-dp 16 -dpn 3 --enable-fault-tolerance",
    "-dp 16 -dpn 3 --enable-fault-tolerance -asc 2",
)


def drawn(number: int) -> list[str]:
    """Command lines of flags drawn apart, so that most do not go together."""
    rng = random.Random(32)
    choices = (
        ("-dp", (1, 2, 3, 4, 8, 16), 0.9), ("-dpl", (0, 1, 2, 3, 4, 8), 0.5), ("-n", (1, 2, 3, 4, 8), 0.4),
        ("-r", (0, 1, 2, 3), 0.3), ("-tp", (1, 2, 4, 8), 0.4), ("-pp", (1, 2), 0.2), ("-dpr", (0, 1, 2, 4, 8), 0.3),
        ("-dpn", (0, 1, 3, 8), 0.15), ("-asc", (1, 2, 3), 0.2), ("-dph", None, 0.2), ("-dpe", None, 0.1),
        ("-dpm", None, 0.12), ("--headless", None, 0.3),
    )  # fmt: skip
    lines = []
    for _ in range(number):
        taken = [(flag, values) for flag, values, share in choices if rng.random() < share]
        lines.append(" ".join(f"{flag} {rng.choice(values)}" if values else flag for flag, values in taken))
    return list(dict.fromkeys(lines))


def answer(kind: str, line: str) -> dict[str, Any]:
    """What one command starts, or the first words of vLLM's refusal."""
    import vllm.entrypoints.cli.serve as serve
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.entrypoints.launchers.dp_supervisor import (
        _build_vllm_dp_server_args,
        validate_multi_port_external_lb_args,
    )
    from vllm.usage.usage_lib import UsageContext
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    found: dict[str, Any] = {}

    def start(args: Any, *, headless: bool = False) -> None:
        engine = AsyncEngineArgs.from_cli_args(args)
        if not headless and (args.api_server_count or 1) > 1:
            engine._api_process_count, engine._api_process_rank = args.api_server_count, -1
        config = engine.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER, headless=headless)
        whole = config.parallel_config
        assert headless or whole.local_engines_only or whole.data_parallel_rank == 0  # run_multi_api_server
        found.setdefault("first_replica", whole.data_parallel_rank)
        found["replicas"] = found.get("replicas", 0) + whole.data_parallel_size_local
        found["servers"] = found.get("servers", 0) + (
            1 if args.api_server_count is None else args.api_server_count
        )
        found["balancing"] = (
            "external"
            if whole.data_parallel_external_lb
            else "hybrid"
            if whole.data_parallel_hybrid_lb
            else "internal"
        )
        found["machines_of_a_replica"] = whole.nnodes_within_dp
        found["ranks_of_it_here"] = whole.local_world_size

    def supervise(args: Any) -> None:
        validate_multi_port_external_lb_args(args)
        for place in range(args.data_parallel_size_local):
            start(_build_vllm_dp_server_args(args, place))

    def headless(args: Any) -> None:
        start(args, headless=True)
        if found["replicas"] <= 0:
            raise ValueError("data_parallel_size_local must be > 0 in headless mode")

    serve.run_headless, serve.run_multi_api_server, serve.run_dp_supervisor = headless, start, supervise
    serve.run_server, serve.uvloop.run = start, lambda done: done
    folder = vllm_meta._folder(copy.deepcopy(MODELS[kind]))
    fixed = ["--load-format", "dummy", "--skip-tokenizer-init", "--enforce-eager"]
    parser = make_arg_parser(FlexibleArgumentParser())
    words = [w for w in line.split() if w]
    try:
        args = parser.parse_args([*fixed, *words])
        args.model_tag = folder
        serve.ServeSubcommand.cmd(args)
    except (ValueError, AssertionError, NotImplementedError) as error:
        return {"refused": _said(error)}
    return found


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = next(
        (line for line in lines if line.startswith("Value error")), lines[0] if lines else "assertion"
    )
    return text[:160]


def main() -> None:
    os.environ["VLLM_HOST_IP"] = "127.0.0.1"
    vllm_meta.NEVER_CALLED += SERVERS
    card = vllm_meta.platform()
    card.device_count = classmethod(lambda cls: 8)
    found = {kind: {line: answer(kind, line) for line in LINES} for kind in MODELS}
    found["moe"] |= {line: answer("moe", line) for line in drawn(400)}
    FIXTURE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
