"""Pastes around a command: shells, containers, charts, package runners, each as what runs it reads it."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvplan.engines.command import read_command
from kvplan.engines.flags import EngineArgs
from kvplan.engines.pasted.expansion import UNSTATED
from kvplan.engines.pasted.shell import Script
from kvplan.engines.pasted.started import NoStart, find_starts
from kvplan.engines.vllm_parser import check_age, flag_ages, vllm_flags
from kvplan.ground.errors import KvplanError

TP, PP, LEN = "tensor_parallel_size", "pipeline_parallel_size", "max_model_len"

# ---- shells

SHELL_LINES = [
    "A='-x \"y z\"'; show $A \"$A\" '$A'",
    "A=1; A=2 show $A",
    "show ${N:-a b} \"${N:-a b}\" ${N-'c d'} ${N:+e} x${N:=f}y $N",
    'L=(a "b c"); L+=(d); show "${L[@]}" ${L[@]} "${L[*]}" ${#L[@]} ${L[1]}',
    "show $((2*4)) $((7/2)) $((-7/2)) $((-7%3)) $((1<<3)) $(( (2+3)*4 ))",
    "N=3; show $((N*2)) $(($N+1))",
    "X=/a/b.c.d; show ${X##*/} ${X#*/} ${X%.*} ${X%%.*} ${X/b/z} ${X//./-} ${X:2} ${X:2:3} ${#X}",
    "X=AbC; show ${X,,} ${X^^}",
    'show a\\ b \'c\'"d"e $\'f\\tg\' "h\\"i" "j\\k" "\\$l"',
    "show a # b\nshow c#d",
    "show a \\\n  b",
    "show a >/dev/null 2>&1; show b &>/dev/null; show c 2>/dev/null",
    "A=' b '; show x${A}y \"x${A}y\"",
    'E=; show $E "$E" x$E',
    'V="$(cat <<\'EOF\'\n{"a": "it\'s"}\nEOF\n)"; show "$V"',
    'V=$(echo a  b); show $V "$V"',
    "(show a; show b) && { show c; }",
    "export A=1 B=2; show $A$B",
    'show "${N:-"q r"}"',
    'show {"a":1}',
    'A=(); if [[ -n "${X:-}" ]]; then A+=(x); fi; [ -z "$X" ] && A+=(z); show "${A[@]}"',
    "N=3; if [ $N -gt 2 ]; then show a; elif [ $N = 3 ]; then show b; else show c; fi",
    "N=1; if [[ $N -gt 2 || ( $N == 3 && -n $N ) ]]; then show a; elif [[ ! $N != 1 ]]; then show b; fi",
    'M=agg; case "${M}" in pre*|dec) show a;; a*) show b;; *) show c;; esac',
    'f() { local x=$1; show "$x" $# "$@"; shift; show "$@"; }; f \'a b\' c',
    "while [ $# -gt 0 ]; do case $1 in --x) X=$2; shift 2;; esac; done; show ${X:-none}",
    "for i in a 'b c'; do break; done; show $i",
    "set -- a 'b c'; show \"$2\" $#",
    "A=\"-x 'y z'\"; eval show $A",
    "true && show a; false && show c || show d; ! false && show e",
    '[ -n "$X" ] || { Y=1; show $Y; }',
    "if true; then\n  show a\nelse\n  show b\nfi > /dev/null 2>&1; show c",
    "function f { show f; }\nf",
    'L=(); show "${L[@]}" ${L[@]} x"${L[@]}" "" \'\'',
    'f() { show $# "${1:-none}"; }; f "$@"',
    '[[ abc == a* ]] && show yes; [[ abc == "a*" ]] || show no',
]


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("line", SHELL_LINES)
def test_words_are_bashs(line: str) -> None:
    """`show` prints its words, each in its own line; bash itself is asked."""
    assert shown(line) == bashs(line)


def bashs(line: str) -> list[list[str]]:
    """What bash gives `show` at each call."""
    tell = "show() { printf '%s\\x1f' \"$#\" \"$@\" >&9; printf '\\x1e' >&9; }\n"
    ran = subprocess.run(
        ["bash", "-c", f"exec 9>&1\n{tell}{line}"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    return [call.split("\x1f")[1:-1] for call in ran.stdout.split("\x1e")[:-1]]


def shown(line: str) -> list[list[str]]:
    return [command.words[1:] for command in Script().read(line) if command.words[:1] == ["show"]]


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@given(
    st.lists(
        st.sampled_from(
            [
                "${A}",
                '"${A}"',
                "'${A}'",
                "x",
                " ",
                "  ",
                '"',
                "${B:-c d}",
                "$((1+2))",
                "\\ ",
                "${E}",
                '"${E}"',
                "=",
                "a'b c'd",
            ]
        ),
        max_size=9,
    )
)
def test_any_words_are_bashs(parts: list[str]) -> None:
    """Whatever stands beside what; both refuse a quotation that does not close."""
    line = "A='-x y  z '; E=; show " + "".join(parts)
    try:
        ours = shown(line)
    except KvplanError:
        with pytest.raises(subprocess.CalledProcessError):
            bashs(line)
    else:
        assert ours == bashs(line)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "TP=4 vllm serve m -tp $TP",
            "TP=4 stands before the command itself, whose words the shell makes without it",
        ),
        (
            "vllm serve m -tp $(nproc)",
            r"--tensor-parallel-size \$\(nproc\): what a command prints is not known here",
        ),
        ("vllm serve m -tp `nvidia-smi -L | wc -l`", "what a command prints is not known here"),
        (
            "vllm serve m -tp $((N*2))",
            r"--tensor-parallel-size \$\(\(N\*2\)\): the variable's value is not stated",
        ),
        ("vllm serve $MODEL -tp 2", r"the model \$MODEL: the variable's value is not stated"),
        (
            "export VLLM_PP_LAYER_PARTITION=$P\nvllm serve m -pp 2",
            r"VLLM_PP_LAYER_PARTITION \$P: the variable's value",
        ),
        (
            'E=\'--hf-overrides {"a":1}\'\nvllm serve m "$E"',
            "unrecognized argument .*one word, blanks and all",
        ),
        ("E='--hf-overrides {\"a\": 1}'\nvllm serve m $E", "unrecognized argument '1}'"),
        ("E=\"--hf-overrides '{}'\"\nvllm serve m $E", "must be a JSON object, not '{}'"),
        ("vllm serve m --port 80 other", "unrecognized argument 'other'"),
        ("vllm serve m --config none.yaml", "no such file here, nor one that the paste writes"),
    ],
)
def test_what_a_shell_makes_of_it_is_said(text: str, why: str) -> None:
    with pytest.raises(KvplanError, match=why) as refused:
        read_command(text)
    assert UNSTATED not in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("TP=2\nTP=4 vllm serve m -tp $TP", {TP: 2}),
        ("vllm serve m -tp $((2*4))", {TP: 8}),
        ("vllm serve m -tp ${TP:-2} -pp ${PP:=3} --max-model-len ${L-8192}", {TP: 2, PP: 3, LEN: 8192}),
        ("E='--hf-overrides {\"a\":1} -tp 2'\nvllm serve m $E", {TP: 2}),
        (
            "TP=1\nwhile [ $# -gt 0 ]; do case $1 in --tp) TP=$2; shift 2;; esac; done\nvllm serve m -tp $TP",
            {},
        ),
        ("cat > f.yaml <<EOF\ntensor-parallel-size: 2\nEOF\nvllm serve m --config ./f.yaml", {TP: 2}),
        ("cat > run.sh <<'EOF'\nvllm serve m -tp 2\nEOF\nbash run.sh", {TP: 2}),
        ("echo vllm serve other -tp 8\npkill -f 'vllm serve'\nvllm serve m -tp 2", {TP: 2}),
        ("```bash\n$ vllm serve m -tp 2\n```", {TP: 2}),
        ("!vllm serve m -tp 2", {TP: 2}),
        (
            "It's so:\n\n```yaml\n- x: 'y'\n```\n\n1. don't\n\n   ```bash\n   vllm serve m -tp 2\n   ```\n",
            {TP: 2},
        ),
        ("echo '\nvllm serve m -tp 2\n' > run.sh\nchmod +x run.sh", {TP: 2}),
        (
            "start() {\n  local tp=$1\n  vllm serve m -tp ${tp:-2}\n}\ncase ${1:-} in start) start;; esac",
            {TP: 2},
        ),
        ('run() { vllm serve m -tp "$1"; }\nrun 2', {TP: 2}),
        (
            'A=()\nif [[ -n "${L:-}" ]]; then A+=(--max-model-len "$L"); fi\nvllm serve m -tp 2 "${A[@]}" \\\n',
            {TP: 2},
        ),
        ("docker run `\n  vllm/vllm-openai `\n  --model m `\n  -tp 2", {TP: 2}),
        ("TP ?= 2\nARGS := -tp $(TP)\n\nserve: check\n\t@vllm serve m $(ARGS)\n", {TP: 2}),
        ("user@host:~/x$ vllm serve m -tp 2", {TP: 2}),
        ("torchrun --nproc-per-node 2 -m vllm.entrypoints.openai.api_server --model m -tp 2", {TP: 2}),
        ("python vllm/entrypoints/openai/api_server.py --model m -tp 2", {TP: 2}),
        (
            "VLLM_PP_LAYER_PARTITION='20, 24, 20' vllm serve m -pp 3",
            {PP: 3, "env": "VLLM_PP_LAYER_PARTITION=20,24,20"},
        ),
    ],
)
def test_scripts(text: str, fields: dict[str, Any]) -> None:
    told = read_command(text)
    assert (told.model, told.args) == ("m", EngineArgs(**fields))


def test_blanks_in_a_variable() -> None:
    """`int` passes over them, in kvplan's own flag too (vLLM 0.32 `distributed/utils.py: get_pp_indices`)."""
    env = "VLLM_USE_V2_MODEL_RUNNER=0 VLLM_PP_LAYER_PARTITION=20, 24 ,20"
    args = EngineArgs(pipeline_parallel_size=3, env=env)
    assert args.environment.pp_layer_partition == (20, 24, 20)
    with pytest.raises(ValueError, match="layers of each pipeline stage"):
        EngineArgs(env="VLLM_PP_LAYER_PARTITION=20, x")


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('vllm serve m $EXTRA "$@"', "$EXTRA, $@: not stated; what it holds is not planned"),
        (
            "TP=1\nif nvidia-smi | grep -q H200; then TP=2; fi\nvllm serve m -tp $TP",
            "$TP depends on a condition or a loop; planned with '2'",
        ),
        (
            "for i in 2 4; do vllm serve m -tp $i; done",
            "$i depends on a condition or a loop; planned with '2'",
        ),
        (
            "vllm serve m \\\n  # --port 80 \\\n  -tp 2",
            "-tp and what follows it begin a command of their own: the line before does not go on",
        ),
        (
            "VLLM_USE_V2_MODEL_RUNNER=0\nvllm serve m",
            "VLLM_USE_V2_MODEL_RUNNER is set and does not reach the engine: it is not exported or passed on",
        ),
        (
            "export VLLM_USE_V2_MODEL_RUNNER=0\ndocker run vllm/vllm-openai --model m",
            "VLLM_USE_V2_MODEL_RUNNER is set and does not reach the engine: it is not exported or passed on",
        ),
    ],
)
def test_what_is_left_open_is_a_note(text: str, note: str) -> None:
    assert read_command(text).notes == (note,)


def test_variables_that_are_passed_on_reach_a_container() -> None:
    text = "export VLLM_USE_V2_MODEL_RUNNER=0\ndocker run -e VLLM_USE_V2_MODEL_RUNNER -e A=1 vllm/vllm-openai --model m"
    told = read_command(text)
    assert (told.args.env, told.no_effect, told.notes) == ("VLLM_USE_V2_MODEL_RUNNER=0", ("A",), ())


# ---- containers and charts

SIDECAR = """
kind: Pod
spec:
  initContainers:
  - {name: get, image: "vllm/vllm-openai:v0.20.0", command: [sh, -c], args: ["hf download m"]}
  containers:
  - {name: router, image: "x/router:1", args: ["--port=8000", "--target=8001"]}
  - name: m
    image: vllm/vllm-openai:v0.20.1
    args: ["--model", "$(MODEL)", "-tp=$(TP)", "--max-model-len", "$(LEN)", "--served-model-name=$$(x)"]
    env:
    - {name: HALF, value: "2"}
    - {name: TP, value: "$(HALF)"}
    - {name: MODEL, value: m}
    - {name: LEN, valueFrom: {configMapKeyRef: {name: c, key: length}}}
---
kind: ConfigMap
metadata: {name: c}
data: {length: "8192"}
"""
COMPOSE = """
services:
  web: {image: nginx, command: [nginx, -g, "daemon off;"]}
  m:
    image: vllm/vllm-openai:${TAG:-v0.20.0}
    command: >
      --model ${MODEL:-m}
      -tp ${TP:-2}
    environment: {TP: 4}
"""
PRODUCTION_STACK = """
servingEngineSpec:
  modelSpec:
  - name: m
    repository: vllm/vllm-openai
    tag: v0.20.0
    modelURL: m
    vllmConfig: {tensorParallelSize: 2, maxModelLen: 8192, enablePrefixCaching: true, extraArgs: [--max-num-seqs, "8"]}
"""
LLM_D = """
modelArtifacts: {uri: "hf://org/m", name: m}
decode:
  parallelism: {tensor: 2}
  containers:
  - {name: vllm, image: "ghcr.io/llm-d/llm-d:v0.2.0", modelCommand: vllmServe, args: ["--max-model-len", "8192"]}
"""
RUNTIME = """
kind: ServingRuntime
spec:
  containers:
  - image: quay.io/modh/vllm:rhoai-2.20
    args: [--model, m, "--tensor-parallel-size=$(TP)"]
    env: [{name: TP, value: "2"}]
  - {image: "x/vllm-router:v1", args: ["--port=8000"]}
"""
RAY = """
applications:
- args:
    llm_configs:
    - model_loading_config: {model_id: x, model_source: m}
      engine_kwargs: {tensor_parallel_size: 2, enable_prefix_caching: false, hf_overrides: {a: 1}}
"""
SKY = """
resources: {accelerators: {H100: 2}}
envs: {MODEL: m}
setup: pip install vllm==0.20.0
run: |
  vllm serve $MODEL -tp $SKYPILOT_NUM_GPUS_PER_NODE
"""
KSERVE = """
spec:
  predictor:
    model:
      modelFormat: {name: huggingface}
      args: ["--model_name=x", "--tensor-parallel-size=2", "--backend=vllm"]
      storageUri: hf://m
"""
DOCKERFILE = 'FROM vllm/vllm-openai:v0.20.0\nENV A=1\nCMD ["--model", "m", \\\n     "-tp", "2"]\n'
CHART = """
containers:
- name: vllm
  image: "{{ .Values.image }}"
  {{- with .Values.resources }}
  resources: {{ toYaml . | nindent 4 }}
  {{- end }}
  command: [vllm, serve, m]
  args: [-tp, "2", --port, "{{ .Values.port }}"]
"""
APPLIED = f"kubectl apply -f - <<'EOF'{SIDECAR}EOF\n"


@pytest.mark.parametrize(
    ("text", "fields", "version"),
    [
        (SIDECAR, {TP: 2, LEN: 8192}, "0.20"),
        (APPLIED, {TP: 2, LEN: 8192}, "0.20"),
        (COMPOSE, {TP: 2}, "0.20"),
        (PRODUCTION_STACK, {TP: 2, LEN: 8192, "enable_prefix_caching": True, "max_num_seqs": 8}, "0.20"),
        (LLM_D, {TP: 2, LEN: 8192}, ""),
        (RUNTIME, {TP: 2}, ""),
        (RAY, {TP: 2, "enable_prefix_caching": False}, ""),
        (SKY, {TP: 2}, "0.20"),
        (KSERVE, {TP: 2}, ""),
        (DOCKERFILE, {TP: 2}, "0.20"),
        (CHART, {TP: 2}, ""),
        ("kubectl run q --image=vllm/vllm-openai:v0.11.0 --env=A=1 -- --model m -tp 2", {TP: 2}, "0.11"),
        ("kubectl run q --image vllm/vllm-openai:v0.11.0 --command -- vllm serve m -tp 2", {TP: 2}, "0.11"),
        (
            "kubectl create deployment q --image=vllm/vllm-openai:v0.11.0 -- vllm serve m -tp 2",
            {TP: 2},
            "0.11",
        ),
        ("docker compose run --rm -e A=1 vllm-server --model m -tp 2", {TP: 2}, ""),
        ("docker-compose run vllm vllm serve m -tp 2", {TP: 2}, ""),
        ("podman run --entrypoint vllm vllm/vllm-openai:v0.20.0 serve m -tp 2", {TP: 2}, "0.20"),
        (
            "docker run -v /x/vllm/vllm-openai:/y vllm/vllm-openai:v0.20.0 bash -lc 'vllm serve m -tp 2'",
            {TP: 2},
            "0.20",
        ),
        (
            json.dumps({"image": "vllm/vllm-openai:v0.20.0", "command": ["--model", "m", "-tp", "2"]}),
            {TP: 2},
            "0.20",
        ),
    ],
)
def test_containers(text: str, fields: dict[str, Any], version: str) -> None:
    """As Kubernetes, compose, docker and the charts' own templates start them."""
    told = read_command(text)
    assert told.model.removeprefix("org/") == "m"
    assert (told.args, told.version) == (EngineArgs(**fields), version)


def test_ray_serves_objects_are_json() -> None:
    assert read_command(RAY).hf_overrides == {"a": 1}


def test_a_reference_without_a_variable() -> None:
    with pytest.raises(
        KvplanError, match=r"--tensor-parallel-size \$\(TP\): the variable's value is not stated"
    ):
        read_command('args: ["--model", "m", "-tp=$(TP)"]')
    with pytest.raises(KvplanError, match=r"--tensor-parallel-size \$TP: the variable's value"):
        read_command(COMPOSE.replace("${TP:-2}", "$TP"))  # compose takes the host's, not the container's


def test_two_dollars_are_one() -> None:
    """In compose's words and in Kubernetes' references; the container's shell has its variables."""
    compose = "services: {m: {image: vllm/vllm-openai, entrypoint: [sh, -c], environment: {TP: 2}, "
    compose += "command: ['vllm serve m -tp $$TP']}}"
    assert read_command(compose).args.tensor_parallel_size == 2


def test_a_deployment_takes_the_command() -> None:
    told = read_command("kubectl create deployment q --image=vllm/vllm-openai -- --model m -tp 2")
    assert told.args == EngineArgs(tensor_parallel_size=2)
    assert "in place of the image's own" in told.notes[0]


@pytest.mark.parametrize(
    "text", ["kind: Pod\nspec:\n  containers:\n  - {image: nginx, args: [a]}", "echo vllm serve m", ""]
)
def test_no_start(text: str) -> None:
    with pytest.raises(NoStart):
        find_starts(text)


# ---- versions


@pytest.mark.parametrize(
    ("text", "version", "said_by"),
    [
        ("uvx vllm@0.19 serve m", "0.19", "the version that the command names"),
        ("uvx --from vllm==0.19.1 vllm serve m", "0.19", "the version that the command names"),
        ("uvx --from 'vllm[flashinfer]==0.19.1' vllm serve m", "0.19", "the version that the command names"),
        ("uv run --with vllm==0.19 vllm serve m", "0.19", "the version that the command names"),
        ("pipx run --spec vllm==0.19.0 vllm serve m", "0.19", "the version that the command names"),
        ("pipx run vllm==0.19.0 serve m", "0.19", "the version that the command names"),
        ("pip install 'vllm==0.19.0'\nvllm serve m", "0.19", "the version that is installed"),
        ("V=0.19.1\nuv pip install vllm==$V && vllm serve m", "0.19", "the version that is installed"),
        (
            "pip install https://x/v0.19.0/vllm-0.19.0+cu129-cp38-abi3-linux.whl; vllm serve m",
            "0.19",
            "the version that is installed",
        ),
        (
            "docker run nvcr.io/nvidia/tensorrt-llm/release:1.0.0 trtllm-serve m",
            "1.0.0",
            "the image's version",
        ),
        ("docker run lmsysorg/sglang:v0.5.9 sglang serve --model-path m", "0.5.9", "the image's version"),
        ("docker run rocm/vllm:rocm7.0_py3.12_vllm_0.23.0 vllm serve m", "0.23", "the image's version"),
    ],
)
def test_versions(text: str, version: str, said_by: str) -> None:
    told = read_command(text)
    assert told.version == version
    assert told.notes[-1].endswith(f" {version}, {said_by}")


def test_no_version_is_made_up() -> None:
    for text in (
        "pip install vllm\nvllm serve m",
        "pip install 'vllm>=0.19'\nvllm serve m",
        "pip install x==0.19\nvllm serve m",
    ):
        assert not read_command(text).version


def test_flags_that_came_later_are_refused() -> None:
    """--numa-bind came with 0.20 (the sources of 0.19.1 and 0.20.0); what no version has is refused as ever."""
    image = "docker run vllm/vllm-openai:v{} --model m {}"
    assert read_command(image.format("0.20.0", "--numa-bind")).no_effect == ("--numa-bind",)
    with pytest.raises(KvplanError, match=r"^--numa-bind: vLLM 0.19.1 has no such flag; it came with 0.20$"):
        read_command(image.format("0.19.1", "--numa-bind"))
    with pytest.raises(KvplanError, match=r"^--numa-bind: vLLM 0.11.0 has no such flag"):
        read_command(image.format("0.11.0", "--numa-bind"))


def test_flags_that_went_are_taken_by_the_versions_that_had_them() -> None:
    """vLLM 0.9.2's parser has --swap-space and --rope-theta; 0.32's has not."""
    image = "docker run vllm/vllm-openai:v{} --model m {}"
    told = read_command(
        image.format("0.9.2", "--swap-space 4 --rope-theta 5 --num-scheduler-steps 8 --port 1")
    )
    assert told.no_effect == ("--swap-space", "--port")
    assert told.hf_overrides == {"rope_theta": 5}
    assert told.not_planned == (
        "--num-scheduler-steps (of older versions: multi-step scheduling went with the first engine)",
    )
    for text in (image.format("0.20.0", "--swap-space 4"), "vllm serve m --swap-space 4"):
        with pytest.raises(KvplanError, match=r"vLLM 0\.32 has no such flag"):
            read_command(text)


def test_ages_are_of_known_flags() -> None:
    """Every flag of 0.32 has no last version; no age lies outside of the releases that were read."""
    for flag, age in flag_ages().items():
        assert (flag in vllm_flags()) == (age.until is None)
        assert age.since <= (age.until or (0, 32))
        check_age(flag, "")
        check_age(flag, "0.33")


# ---- other engines


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "sglang.launch_server --model-path m --mem-fraction-statics 0.8",
            "did you mean mem-fraction-static",
        ),
        ("sglang.launch_server --model-path m --mem_fraction_static 0.8", "SGLang 0.5.23 has no such flag"),
        (
            "sglang.launch_server --model-path m --pp 2",
            "ambiguous, could be --pp-async-batch-depth, --pp-max",
        ),
        ("sglang.launch_server --model-path m --tp", "--tp-size: expected one argument"),
        ("trtllm-serve m --max_batch_sizes 3", "did you mean max_batch_size"),
        ("trtllm-serve m --max_batch 3", "no such flag"),
        ("trtllm-serve m other", "unrecognized argument 'other'"),
    ],
)
def test_other_parsers_refuse(text: str, why: str) -> None:
    with pytest.raises(KvplanError, match=why):
        read_command(f"python -m {text}")


def test_sglang_takes_beginnings_and_other_spellings() -> None:
    told = read_command(
        "sglang serve m --tp 4 --mem-frac 0.8 --disable-radix --enable-tf32-matmul --ep 4 --por 1"
    )
    assert told.args == EngineArgs(
        tensor_parallel_size=4,
        gpu_memory_utilization=0.8,
        enable_prefix_caching=False,
        enable_expert_parallel=True,
    )
    assert (told.no_effect, told.not_planned) == (("--port",), ("--enable-tf32-matmul",))


def test_an_older_sglang_may_have_had_a_flag() -> None:
    told = read_command("docker run lmsysorg/sglang:v0.4.6 sglang serve --model-path m --enable-ep-moe")
    assert told.not_planned == ("--enable-ep-moe (no flag of the parser that is known)",)


def test_sglangs_attention_in_parts_and_overrides() -> None:
    """0.5.23's --attn-dp-size is --dp-size with --enable-dp-attention; overrides are laid over the config."""
    told = read_command("sglang serve m --tp 4 --attn-dp-size 2 --json-model-override-args '{\"a\": 1}'")
    assert told.args == EngineArgs(tensor_parallel_size=2, data_parallel_size=2)
    assert told.hf_overrides == {"a": 1}


TRT = """
cat >./c.yml <<EOF
kv_cache_config: {free_gpu_memory_fraction: 0.8, dtype: fp8, enable_block_reuse: false}
cuda_graph_config: null
moe_config: {backend: CUTLASS}
print_iter_log: true
EOF
trtllm-serve m --tp_size 2 --kv_cache_free_gpu_memory_fraction 0.5 --config c.yml
"""


def test_a_file_of_trtllm_goes_over_its_line() -> None:
    """TensorRT-LLM, trtllm-serve: arguments of the file override those of the command line."""
    told = read_command(TRT)
    assert told.args == EngineArgs(
        tensor_parallel_size=2,
        gpu_memory_utilization=0.8,
        kv_cache_dtype="fp8",
        enable_prefix_caching=False,
        enforce_eager=True,
    )
    assert (told.not_planned, told.no_effect) == (
        ("--config moe_config.backend",),
        ("--config print_iter_log",),
    )


# ---- what strangers paste


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("A=xx\n" + "A=$A$A\n" * 40 + "vllm serve m", "grows beyond 500,000 characters"),
        ("f() { " + "f; " * 30 + "}\n" + "f\n" * 9 + "vllm serve m", "does not come to an end"),
        ('"$(' * 2000 + "vllm serve m", "cannot be read"),
        ("vllm serve m -tp '2\n3\ue000$x'", "--tensor-parallel-size 2 3"),
    ],
)
def test_endless_and_odd_texts_are_a_line(text: str, why: str) -> None:
    with pytest.raises(KvplanError, match=why) as refused:
        read_command(text)
    assert "\n" not in str(refused.value)
    assert UNSTATED not in str(refused.value)


@given(st.data())
def test_damaged_texts_are_read_or_refused(data: st.DataObject) -> None:
    """Characters go, come and double anywhere: an answer or one line, never a traceback."""
    text = data.draw(st.sampled_from([SIDECAR, COMPOSE, DOCKERFILE, TRT, SKY, RAY, LLM_D, *SHELL_LINES]))
    odd = st.sampled_from(
        ['"', "'", "$(", "${", ")", "}", "<<E\n", "[[", "if ", "fi\n", "{{", "\\", "- ", UNSTATED]
    )
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(odd) + text[at + data.draw(st.integers(0, 9)) :]
    told = ""
    try:
        read_command([text])
    except KvplanError as error:
        told = str(error)
    assert not set("\n" + UNSTATED) & set(told)
