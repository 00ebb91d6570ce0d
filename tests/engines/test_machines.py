"""Flags about several machines, beside what vLLM's own command makes of them (`tests/models/make_machines.py`)."""

from __future__ import annotations

import json

import pytest
from places import FIXTURES

from kvplan.engines.cards import cards
from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.engines.load_balancing import (
    balancing,
    groups_of_servers,
    num_api_servers,
    replicas_started,
    servers_of_command,
)
from kvplan.engines.nodes import (
    check_nodes,
    commands_line,
    find_spread,
    gpus_each,
    num_machines,
    replica_size,
)
from kvplan.ground.errors import KvplanError
from kvplan.ground.gpu import get_gpu, split_count
from kvplan.ground.units import GiB
from kvplan.memory.exchange_buffers import exchange_bytes
from kvplan.memory.forward import estimate
from kvplan.memory.kernel_checks import check_kernels
from kvplan.models.load import load_model
from kvplan.search.question import read_cards, sizes

VLLM = json.loads((FIXTURES / "machines_vllm_0.32.json").read_text())
WAIT_FOR_EVER = ("-dp 16 -n 2 -dpl 16", "-dp 5 -n 2 -tp 2", "-dp 5 -n 2 -tp 2 -dpl 2")
"""vLLM starts these, and its ranks wait for others that no command starts."""
BEYOND = ("-dp 3 -dpl 2 -r 2 -dpr 2",)
"""vLLM starts these, and stops at a replica that is not there (`v1/engine/core.py: dp_rank < dp_size`, `utils.py`)."""


def told(line: str) -> EngineArgs:
    return read_command(f"vllm serve m {line}").args


def refusal(line: str, moe: bool) -> str:
    try:
        check_nodes(told(line), may_stand_alone=moe)
    except KvplanError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("kind", "line"), [(kind, line) for kind, lines in VLLM.items() for line in lines])
def test_as_vllms_own_command(kind: str, line: str) -> None:
    """Refused where vLLM refuses; else as many replicas, API servers and ranks here, spread over by the same."""
    answer = VLLM[kind][line]
    if any(what in answer.get("refused", "") for what in ("Number of experts", "number of available GPUs")):
        pytest.skip("of experts or cards, not of machines")
    refused = refusal(line, kind == "moe")
    assert bool(refused) == ("refused" in answer or line in WAIT_FOR_EVER + BEYOND), refused
    if refused:
        return
    args = told(line)
    started = replicas_started(args)
    assert (started.start if started else 0, len(started)) == (answer["first_replica"], answer["replicas"])
    assert servers_of_command(args) == answer["servers"]
    assert balancing(args) == answer["balancing"]
    whole = answer["machines_of_a_replica"]
    assert answer["ranks_of_it_here"] * whole == replica_size(args)
    if answer["balancing"] != "external" and answer["replicas"]:
        assert gpus_each(args) == answer["replicas"] * answer["ranks_of_it_here"]
        assert num_machines(args) == -(-args.data_parallel_size // answer["replicas"]) * whole


def test_what_vllm_starts_is_planned_to_its_end() -> None:
    """API servers before all replicas of all commands, machines that hold all ranks, a word on the others' commands."""
    for line in VLLM["moe"]:
        if not refusal(line, True):
            args = told(line)
            groups, spread = groups_of_servers(args), find_spread(args, moe=True)
            assert sum(groups) == args.data_parallel_size
            assert num_api_servers(args) >= len(groups)
            assert spread.num_gpus == replica_size(args) * args.data_parallel_size
            assert spread.num_machines == 1 or commands_line(args)


HEAD = "vllm serve m -dp 16 -dpl 8 -dpa 10.0.0.1 -ep --max-num-seqs 64"
REST = "vllm serve m --headless -dp 16 -dpl 8 -dpr 8 -dpa 10.0.0.1 -ep"


def test_commands_of_two_machines_are_one_deployment() -> None:
    """In either order; the first machine's is planned, and what differs is said."""
    for text in (f"{HEAD}\n{REST}", f"{REST}\n{HEAD}"):
        read = read_command(text)
        assert read.args == told("-dp 16 -dpl 8 -ep --max-num-seqs 64")
        assert read.notes[0].startswith("2 commands of one deployment: replicas ")
        assert {*read.notes[0].partition("replicas ")[2].split(", ")} == {"0-7", "8-15"}
        assert read.notes[1:] == ("the commands differ in --max-num-seqs: planned as the first machine's",)


def test_a_machine_without_replicas_and_replicas_without_a_machine() -> None:
    """API servers alone on the first machine; a machine whose command is not there."""
    read = read_command(f"{HEAD.replace('-dpl 8', '-dpl 0')}\n{REST.replace('-dpr 8', '')}")
    assert read.args.data_parallel_size_local == 8
    assert read.notes[:2] == (
        "2 commands of one deployment: replicas none, 0-7",
        "started by none of these commands, so vLLM waits for them: replicas 8-15",
    )
    nodes = read_command("vllm serve m -tp 16 -n 4\nvllm serve m -tp 16 -n 4 -r 2 --headless")
    assert nodes.notes[1] == "started by none of these commands, so vLLM waits for them: machines 1, 3"


def test_sglangs_commands_of_two_machines() -> None:
    start = "python -m sglang.launch_server --model-path m --tp 16 --nnodes 2 --node-rank"
    read = read_command(f"{start} 1\n{start} 0")
    assert (read.args.nnodes, read.args.node_rank) == (2, 0)
    assert read.notes == ("2 commands of one deployment: machines 1, 0",)


def test_commands_that_start_the_same_or_something_else() -> None:
    with pytest.raises(KvplanError, match="two of the commands start replica 4"):
        read_command(f"{HEAD}\n{REST.replace('-dpr 8', '-dpr 4')}")
    with pytest.raises(KvplanError, match="start replica 0; --data-parallel-size-local says"):
        read_command("vllm serve m -dp 8\nvllm serve m -dp 8 -dpr 4")
    for other in (
        "vllm serve m -dp 16",
        REST.replace("-ep", "-tp 2"),
        "vllm serve other --headless -dp 16 -dpl 8",
    ):
        read = read_command(f"{HEAD}\n{other}")
        assert read.notes == ("more than one engine is started; the first is planned",)


def test_the_plan_says_how_the_other_machines_are_started() -> None:
    def line(flags: str) -> str:
        return commands_line(told(flags))

    others = "Each of the others is started by the same command with"
    address, master = (
        f" All name the first's address, {flag}." for flag in ("--data-parallel-address", "--master-addr")
    )
    assert line("-dp 16 -dpl 8") == f"{others} --headless --data-parallel-start-rank 8.{address}"
    assert line("-dp 16 -dpl 8 -dph") == f"{others} --data-parallel-start-rank 8.{address}"
    assert line("-dp 16 -n 2") == f"{others} --headless --node-rank 1.{master}"
    assert line("-dp 3 -dpl 2").endswith(
        f"--data-parallel-start-rank 2 (the last with --data-parallel-size-local 1).{address}"
    )
    assert line("-dp 16 -dpn 0") == f"{others} --data-parallel-rank 1, 2 ... 15.{address}"
    assert line("-dp 16 -dpl 8 -dpr 8 --headless").startswith(
        "Its command is the one that starts replicas 8 to 15;"
    )
    assert line("-dp 2 -n 4 -tp 16 -r 3 --headless").startswith(
        "Its command is the one that starts replica 1, part 2 of 2;"
    )
    assert line("-dp 16 -dpl 0").startswith("It holds no replica")
    assert line("-dp 16 -dpl 8 -dpb ray") == "Its one command starts all of them; Ray finds the machines."
    assert line("-dp 8") == line("-dp 8 -dpl 8") == ""


def test_what_crosses_between_replicas_on_machines() -> None:
    moe, dense = (str(find_spread(told("-dp 3 -dpl 2 -tp 4"), moe=moe)) for moe in (True, False))
    assert moe == "Over 2 machines of 8 GPUs, 4 on the last: exchanges of experts' ranks cross the network."
    assert dense == "Over 2 machines of 8 GPUs, 4 on the last: nothing of a step crosses the network."
    alone = str(find_spread(told("-dp 16 -dpn 3"), moe=True))
    assert alone.startswith("Over 2 machines of 8 GPUs (assumed): exchanges")


def test_deepeps_buffer_between_machines_is_there_where_ranks_are() -> None:
    """vLLM 0.32 `distributed/device_communicators/all2all.py: DeepEPHTAll2AllManager`: a second one, of 1 GiB."""
    flags = {
        "data_parallel_size": 8,
        "enable_expert_parallel": True,
        "all2all_backend": "deepep_high_throughput",
    }
    spread = {"data_parallel_size_local": 4}
    forced = {**spread, "env": "VLLM_DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE=1"}
    one, two, kept_inside = (
        exchange_bytes(load_model("Qwen/Qwen3-30B-A3B"), EngineArgs(**flags, **more))  # type: ignore[arg-type]
        for more in ({}, spread, forced)
    )
    assert (one, two, kept_inside) == (GiB, 2 * GiB, GiB)


def test_machines_of_a_cloud_by_their_number() -> None:
    """Each a pipeline stage; stated sizes on as few as hold them; more than there are is refused."""

    def asked(text: str, flags: str = "") -> tuple[int, int, int, int]:
        args = cards(text, told(flags))[1]
        return (
            args.tensor_parallel_size,
            args.pipeline_parallel_size,
            args.data_parallel_size,
            num_machines(args),
        )

    assert asked("2xp5en.48xlarge") == (8, 2, 1, 2)
    assert asked("p5en.48xlarge") == (8, 1, 1, 1)
    assert asked("4xp5en.48xlarge", "-tp 8 -dp 2") == (8, 1, 2, 2)
    assert asked("2xp5en.48xlarge", "-tp 4") == (4, 1, 1, 1)
    assert asked("2xp5en.48xlarge", "-dp 16 -dpl 8") == asked("8xh200", "-dp 16 -dpl 8") == (1, 1, 16, 2)
    assert asked("2xp5en.48xlarge", "-dp 16 -n 2") == (1, 1, 16, 2)
    assert split_count("2xp5en.48xlarge") == split_count("p5en.48xlarge:2") == (16, "h200")
    assert [*map(sizes, read_cards(["2xg5.12xlarge", "8xh100"]))] == [[1, 2, 4], [1, 2, 4, 8]]
    for text, flags, why in (
        ("2xp5en.48xlarge", "-dp 32 -dpl 8", "2 machines, the flags ask for 4"),
        ("2xp5en.48xlarge", "-tp 8 -pp 3", "2 machines of 8 cards, the parallel sizes ask for 24"),
        ("8xh200", "-dp 32 -dpl 16", "8 cards, the parallel sizes ask for 16 on each machine"),
        ("8xh200", "-dp 16", "8 cards, the parallel sizes ask for 16"),
    ):
        with pytest.raises(KvplanError, match=why):
            cards(text, told(flags))


def test_dense_replicas_stood_alone_in_older_versions() -> None:
    """vLLM 0.21 refuses them, as vllm-ascend's issue 11863 shows; logs of older ones are planned."""
    flags = {"data_parallel_size": 2, "data_parallel_rank": 1}
    assert estimate("Qwen/Qwen3-8B", "h100", engine="vllm@0.19", **flags).fits
    with pytest.raises(KvplanError, match="for mixtures of experts"):
        estimate("Qwen/Qwen3-8B", "h100", engine="vllm@0.21", **flags)


def test_devices_of_a_command() -> None:
    """Enough for the ranks on its machine, each once (vLLM 0.32 `_resolve_device_ids`)."""
    told("-tp 2 --device-ids 2,3")
    told("-dp 16 -dpl 4 --device-ids 0,1,2,3")
    told("-dp 16 -dpn 3 --device-ids 3")
    told("-tp 4 --device-ids 0,1 --distributed-executor-backend ray")
    for line, why in (
        ("-tp 2 --device-ids 3", "1 device, the command's ranks take 2"),
        ("-dp 16 -dpl 4 --device-ids 0,1", "2 devices, the command's ranks take 4"),
        ("-tp 16 -n 2 --device-ids 0,1,2,3", "4 devices, the command's ranks take 8"),
        ("-tp 2 --device-ids 3,3", "must not contain duplicates"),
    ):
        with pytest.raises(KvplanError, match=why):
            told(line)


@pytest.mark.parametrize("line", ["-tp 16", "-tp 8 -pp 2", "-tp 8 -pp 2 --distributed-executor-backend ray"])
def test_a_replica_beyond_a_usual_machine_lies_on_several(line: str) -> None:
    """Whether by Ray or by --nnodes that is left out: as on two machines of eight, and said to be assumed."""
    args = told(line)
    spread = find_spread(args)
    assert spread.assumed
    assert spread._replace(assumed=False) == find_spread(args.model_copy(update={"nnodes": 2}))
    assert "--nnodes 2" in commands_line(args)
    assert find_spread(told("-tp 8")).num_machines == 1
    assert cards("2xp5en.48xlarge", args)[1].nnodes == 2
    assert cards("2xp5en.48xlarge", args)[1].tensor_parallel_size == args.tensor_parallel_size
    with pytest.raises(KvplanError, match=r"8 cards, the parallel sizes ask for 16$"):
        cards("8xh200", args)


def test_machines_that_are_assumed_hold_their_ranks_evenly() -> None:
    """20 ranks lie on four machines of five: --nnodes 3, which 8, 8 and 4 would be, is refused by vLLM."""
    spread = find_spread(told("-tp 4 -pp 5"))
    assert (spread.num_machines, spread.gpus_each, spread.gpus_of_last) == (4, 5, 5)
    check_nodes(told("-tp 4 -pp 5 -n 4"))
    with pytest.raises(KvplanError, match="does not divide"):
        check_nodes(told("-tp 4 -pp 5 -n 3"))


def test_moonep_keeps_experts_in_line() -> None:
    """vLLM 0.32 `config/vllm.py`."""
    with pytest.raises(KvplanError, match="requires --expert-placement-strategy linear"):
        told("--all2all-backend moonep --expert-placement-strategy round_robin")
    with pytest.raises(KvplanError, match="moonep does not go with --enable-eplb"):
        check_kernels(
            load_model("Qwen/Qwen3-30B-A3B"),
            told("-dp 2 -ep --all2all-backend moonep --enable-eplb"),
            get_gpu("h100"),
        )


def test_variables_that_each_machine_has_its_own_value_of() -> None:
    """As launchers write them; the first machine's command is planned, and it is said."""
    read = read_command(
        "vllm serve m -dp 16 --data-parallel-size-local 8 --data-parallel-hybrid-lb -ep"
        " --data-parallel-start-rank $((LWS_WORKER_INDEX * 8)) --data-parallel-address $(LWS_LEADER_ADDRESS)"
    )
    assert (balancing(read.args), replicas_started(read.args)) == ("hybrid", range(8))
    assert read.notes[0].startswith(
        "--data-parallel-start-rank $((LWS_WORKER_INDEX * 8)) is not stated: planned as"
    )
    nodes = read_command("vllm serve m -tp 16 --nnodes 2 --node-rank $RANK --master-addr $HEAD")
    assert (nodes.args.node_rank, nodes.notes) == (
        0,
        ("--node-rank $RANK is not stated: planned as the first's command",),
    )
    local = read_command("vllm serve m -dp 16 -dpl $LOCAL")
    assert num_machines(local.args) == 1
    assert "all replicas are planned on one machine" in local.notes[0]
