"""Manifests and charts' values as the commands that they start: Kubernetes, compose, Helm, Ray Serve, Dockerfiles.

Sources: Kubernetes, "Define Dependent Environment Variables" and "Define a Command and Arguments for a Container" (a
container's `$(NAME)` is its variable's value, `command` takes the place of the image's entry point); the compose
specification, "Interpolation"; production-stack `helm/templates/deployment-vllm-multi.yaml`; llm-d-modelservice
`templates/_helpers.tpl`; Ray 2 `ray.serve.llm` (`engine_kwargs`).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from kvplan.engines.pasted.expansion import UNSTATED
from kvplan.engines.pasted.shell import Script, Simple
from kvplan.engines.pasted.tokens import parts_of

STARTS_WITH = re.compile(
    r"(?:^|[{,])\s*(?:- )?[\"']?(args|command|entrypoint|modelCommand|vllmConfig|engine_kwargs|run|image)[\"']?\s*:",
    re.MULTILINE,
)
"""Keys of which a manifest that starts something has one."""
KUBERNETES = re.compile(r"\$\$|\$\((?P<name>[A-Za-z_][\w.-]*)\)")


def manifest_lines(text: str) -> list[Simple]:
    """What the containers of a manifest start, in order; nothing where the text is no manifest."""
    text = _without_templates(text)
    if re.match(r"\s*(\[|- )", text) and not STARTS_WITH.search(text):
        return _argument_list(text)
    if not STARTS_WITH.search(text):
        return []
    try:
        documents = list(yaml.safe_load_all(text))
    except (yaml.YAMLError, ValueError, RecursionError):
        return []
    if not any(isinstance(document, dict | list) for document in documents):
        return []
    compose = any(isinstance(document, dict) and "services" in document for document in documents)
    stated = _config_maps(documents)
    return [
        line
        for found in _mappings(documents, {})
        for line in _started(found, compose=compose, config_maps=stated)
    ]


def _without_templates(text: str) -> str:
    """A chart's template without its conditions; its values, which other files state, are not stated."""
    text = re.sub(r"^[ \t]*\{\{.*\}\}[ \t]*(\n|\Z)", "", text, flags=re.MULTILINE)
    return re.sub(r"\{\{-?\s*(.*?)\s*-?\}\}", lambda found: f"{UNSTATED}${_name(found[1])}", text)


def _name(text: str) -> str:
    return re.sub(r"\W+", "_", text.split("|")[0].strip()).strip("_")


def _argument_list(text: str) -> list[Simple]:
    """A YAML list of arguments alone, as it stands below `args:`."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    if not isinstance(found, list) or not all(isinstance(item, str | int | float) for item in found):
        return []
    return [Simple([str(item) for item in found])]


def _mappings(found: Any, around: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """All mappings, outermost first; each with what the values around it say of the model."""
    if isinstance(found, dict):
        around = dict(around) | {
            key: found[key] for key in ("modelArtifacts", "parallelism", "storageUri") if key in found
        }
        yield {**around, **found}
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    for one in inner:
        yield from _mappings(one, around)


def _config_maps(documents: Sequence[Any]) -> dict[str, dict[str, str]]:
    """Kubernetes' ConfigMaps by their names."""
    maps = [d for d in documents if isinstance(d, dict) and d.get("kind") == "ConfigMap"]
    return {
        str((one.get("metadata") or {}).get("name")): {str(key): str(value) for key, value in data.items()}
        for one in maps
        if isinstance(data := one.get("data"), dict)
    }


def _started(
    found: Mapping[str, Any], *, compose: bool, config_maps: Mapping[str, Mapping[str, str]]
) -> Iterator[Simple]:
    """What one mapping starts: a container, a model of a chart's values, a job's script."""
    if isinstance(found.get("vllmConfig"), dict) and found.get("modelURL"):
        yield Simple(_production_stack(found), image=f"{found.get('repository')}:{found.get('tag')}")
    elif isinstance(found.get("engine_kwargs"), dict) and "model_loading_config" in found:
        yield Simple(_ray_serve(found))
    elif isinstance(found.get("run"), str) and "\n" in found["run"].strip() + "\n" and "image" not in found:
        yield _job(found)
    elif "modelFormat" in found or ("storageUri" in found and "args" in found and "image" not in found):
        yield Simple(_kserve(found), _referring(_environment(found, config_maps)))
    else:
        yield from _container(found, compose, config_maps)


def _job(found: Mapping[str, Any]) -> Simple:
    """A SkyPilot task: its scripts, and what SkyPilot tells them of the cards."""
    resources = found.get("resources")
    cards = str(resources.get("accelerators", "")) if isinstance(resources, dict) else ""
    count = re.search(r":\s*(\d+)", cards)
    envs = found.get("envs")
    environment = {str(k): _text(v) for k, v in envs.items()} if isinstance(envs, dict) else {}
    environment |= {"SKYPILOT_NUM_GPUS_PER_NODE": count[1] if count else "1"} if cards else {}
    return Simple(["sh", "-c", f"{found.get('setup') or ''}\n{found['run']}"], environment)


def _container(
    container: Mapping[str, Any], compose: bool, config_maps: Mapping[str, Mapping[str, str]]
) -> Iterator[Simple]:
    entry, given = _entry_and_arguments(container, compose)
    chart = _model_service(container)
    image = str(container.get("image") or "")
    if not (entry or given or chart) and not isinstance(container.get("image"), str):
        return
    environment = _environment(container, config_maps)
    if compose:
        interpolate = Script()
        environment = {name: _interpolated(value, interpolate) for name, value in environment.items()}
        image = _interpolated(image, interpolate)
        entry, given = ([_interpolated(word, interpolate) for word in words] for words in (entry, given))
    else:
        environment = _referring(environment)
        entry, given = ([referred(word, environment) for word in words] for words in (entry, given))
    words = [*entry, *chart, *given]
    by_image = bool(image) and not entry and chart[:1] != ["vllm"]
    yield Simple(words, environment, image=image, by_image=by_image)


def _entry_and_arguments(container: Mapping[str, Any], compose: bool) -> tuple[list[str], list[str]]:
    """What takes the place of the image's entry point, as `command` does in Kubernetes alone; and what it is given."""
    entry = container.get("entrypoint") or container.get("entryPoint")
    command = _words(container.get("command"))
    if compose or entry or (command[:1] and command[0].startswith("-")):
        return _words(entry), command
    return command, _words(container.get("args"))


def _words(said: Any) -> list[str]:
    if isinstance(said, str):
        try:
            return shlex.split(said, comments=False)
        except ValueError:
            return said.split()
    return [str(word) for word in said] if isinstance(said, list) else []


def _environment(
    container: Mapping[str, Any], config_maps: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """A container's variables, which Kubernetes lists and compose may map; those of a map that is pasted beside it."""
    found: dict[str, str] = {}
    for source in container.get("envFrom") or ():
        name = (source.get("configMapRef") or {}).get("name") if isinstance(source, dict) else None
        found |= config_maps.get(str(name), {})
    said = container.get("env") or container.get("environment") or ()
    if isinstance(said, dict):
        return found | {str(name): "" if value is None else _text(value) for name, value in said.items()}
    for one in said if isinstance(said, list) else ():
        if isinstance(one, str) and "=" in one:
            name, _, value = one.partition("=")
            found[name] = value
        elif isinstance(one, dict) and "name" in one:
            reference = ((one.get("valueFrom") or {}).get("configMapKeyRef")) or {}
            referred_to = config_maps.get(str(reference.get("name")), {}).get(str(reference.get("key")))
            if "value" in one or referred_to is not None:
                found[str(one["name"])] = _text(one.get("value", referred_to))
    return found


def _text(value: Any) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else "" if value is None else str(value)


def _interpolated(text: str, script: Script) -> str:
    """Compose's `${NAME:-default}`, of variables that no container has; `$$` is a dollar."""
    if "$" not in text:
        return text
    parts = text.split("$$")
    return "$".join(script.joined(parts_of(part, "document")) for part in parts)


def _referring(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables whose values refer to those before them."""
    found: dict[str, str] = {}
    for name, value in environment.items():
        found[name] = referred(value, found)
    return found


def referred(text: str, environment: Mapping[str, str]) -> str:
    """Kubernetes' `$(NAME)` by the container's variables; a line of a shell keeps what is the shell's.

    >>> referred("-tp=$(TP) $(nproc) $$(TP)", {"TP": "2"})
    '-tp=2 $(nproc) $(TP)'
    """

    def value(found: re.Match[str]) -> str:
        if not found["name"]:
            return "$"
        mark = "" if re.search(r"\s", text) else UNSTATED
        return environment.get(found["name"], mark + found[0])

    return KUBERNETES.sub(value, text)


def _production_stack(model: Mapping[str, Any]) -> list[str]:
    """The command of production-stack's chart, of one of its `modelSpec`."""
    config = model["vllmConfig"]
    words = ["vllm", "serve", str(model["modelURL"])]
    words += ["--enable-lora"] if model.get("enableLoRA") else []
    if "enableChunkedPrefill" in config:
        words.append(f"--{'' if config['enableChunkedPrefill'] else 'no-'}enable-chunked-prefill")
    words.append(f"--{'' if config.get('enablePrefixCaching') else 'no-'}enable-prefix-caching")
    for key, flag in (
        ("maxModelLen", "max-model-len"),
        ("dtype", "dtype"),
        ("tensorParallelSize", "tensor-parallel-size"),
        ("maxNumSeqs", "max-num-seqs"),
        ("gpuMemoryUtilization", "gpu-memory-utilization"),
        ("maxLoras", "max-loras"),
    ):
        words += [f"--{flag}", str(config[key])] if key in config else []
    return [*words, *_words(config.get("extraArgs"))]


def _model_service(container: Mapping[str, Any]) -> list[str]:
    """What llm-d's chart puts before a container's own arguments, by its `modelCommand`."""
    how, sizes = container.get("modelCommand"), container.get("parallelism") or {}
    if how not in ("vllmServe", "imageDefault"):
        return []
    protocol, _, path = str((container.get("modelArtifacts") or {}).get("uri", "")).partition("://")
    model = (
        path
        if protocol == "hf"
        else "/".join(path.split("/")[-2:])
        if protocol == "pvc+hf"
        else f"/model-cache/{path.partition('/')[2]}"
    )
    words = ["vllm", "serve", model] if how == "vllmServe" else ["--model", model]
    for key, flag in (("tensor", "tensor-parallel-size"), ("data", "data-parallel-size")):
        words += [f"--{flag}", str(sizes[key])] if isinstance(sizes.get(key), int) and sizes[key] > 1 else []
    return words


def _kserve(model: Mapping[str, Any]) -> list[str]:
    """A KServe model's arguments as vLLM's: `--model_id` is the model, else where it is stored."""
    words = " ".join(shlex.quote(word) for word in _words(model.get("args")))
    words = re.sub(r"--backend[= ]\S+", "", words.replace("--model_name", "--served-model-name"))
    stored = str(model.get("storageUri") or "")
    named = [] if "--model_id" in words or not stored else [stored.removeprefix("hf://")]
    return ["vllm", "serve", *named, *shlex.split(words.replace("--model_id", "--model"))]


def _ray_serve(config: Mapping[str, Any]) -> list[str]:
    """An `llm_configs` entry of Ray Serve as vLLM's own command: `engine_kwargs` are its engine's arguments."""
    model = config["model_loading_config"] or {}
    words = ["vllm", "serve", str(model.get("model_source") or model.get("model_id") or "")]
    for key, value in config["engine_kwargs"].items():
        flag = str(key).replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return words


def dockerfile_lines(text: str) -> list[Simple]:
    """What an image that a Dockerfile makes starts; nothing where the text is none."""
    if not (image := re.search(r"^FROM\s+(?:--\S+\s+)?(\S+)", text, re.MULTILINE)):
        return []
    joined = re.sub(r"\\[ \t]*\n", " ", text)
    script = Script()
    for found in re.finditer(r"^(?:ENV|ARG)\s+(.*)$", joined, re.MULTILINE):
        said = found[1] if "=" in found[1] else found[1].strip().replace(" ", "=", 1)
        script.read(f"export {said}")
    words: list[str] = []
    has_entry = False
    for key in ("ENTRYPOINT", "CMD"):
        if told := re.findall(rf"^{key}\s+(.*)$", joined, re.MULTILINE):
            listed = _json_words(told[-1])
            words += listed if listed is not None else ["sh", "-c", told[-1]]
            has_entry = has_entry or key == "ENTRYPOINT" or listed is None
    environment = {name: script.text_of(name) for name in script.exported}
    return [Simple(words, environment, image=image[1], by_image=not has_entry)]


def _json_words(text: str) -> list[str] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return [str(word) for word in found] if isinstance(found, list) else None
