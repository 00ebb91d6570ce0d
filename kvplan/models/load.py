"""Finding a model: a bundled name, a config.json, a folder, or a repo of the hub, read into a `ModelSpec`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from kvplan.ground.errors import KvplanError, did_you_mean
from kvplan.ground.files import catalog_dir
from kvplan.models.architectures import SENTENCES, from_config
from kvplan.models.config import read_json
from kvplan.models.not_planned import why_not_planned
from kvplan.models.pooling import MODULES, pooling_files, sentence_pooling
from kvplan.models.quantization import GGUF_BITS
from kvplan.models.spec import ModelSpec

__all__ = ["aliases", "bundled_models", "find_bundled", "from_config", "load_model", "path_exists"]


def load_model(
    name_or_path: str | Path,
    *,
    hub: bool = False,
    hf_overrides: Mapping[str, object] | None = None,
    hf_config_path: str = "",
) -> ModelSpec:
    """Find a model by bundled name, config.json file, folder, or (with `hub`) Hugging Face repo id.

    Bundled names ignore case and may leave out the organisation; one with an organisation is that name or a listed
    alias, never another publisher's. An alias keeps its name, and `planned_as` says whose config it is planned with.
    The network is used only with `hub=True`. `hf_overrides` are laid over the config, as vLLM lays its flag's;
    `hf_config_path` is read in the place of the model's own, which then need not be known.

    Raises:
        KvplanError: nothing found (the closest bundled names are offered), or the config is bad.
    """
    if hf_config_path:
        found = _described_by(str(name_or_path), hf_config_path, hub, hf_overrides or {})
    else:
        found = _load(str(name_or_path), hub, hf_overrides or {})
    return replace(found, hf_overrides=json.dumps(hf_overrides)) if hf_overrides else found


def _described_by(text: str, config: str, hub: bool, hf_overrides: Mapping[str, object]) -> ModelSpec:
    """Weights of one checkpoint under the config of another; of a GGUF file, in its type.

    Source: vLLM 0.32 `config/model.py: get_config(self.hf_config_path or self.model)`.
    """
    if not text.strip():
        raise KvplanError("no model named beside --hf-config-path")
    try:
        found = _load(config, hub, {**_gguf_format(text), **hf_overrides})
    except KvplanError as error:
        raise KvplanError(f"--hf-config-path {error}") from None
    return replace(found, name=text, hf_config_path=config)


def _gguf_format(text: str) -> Mapping[str, object]:
    """`quantization_config` of a GGUF file, or of one that a name speaks of; nothing for other models."""
    path = Path(os.path.expanduser(text))
    if path.suffix.casefold() == ".gguf" and path_exists(path):
        from kvplan.models.gguf import gguf_config

        return {"quantization_config": gguf_config(path)["quantization_config"]}
    named = None if path_exists(path) else _gguf_type(text)
    return {"quantization_config": {"quant_method": "gguf", "file_type": named[1]}} if named else {}


def _load(text: str, hub: bool, hf_overrides: Mapping[str, object]) -> ModelSpec:
    if not text.strip():
        raise KvplanError("no model named: give a bundled name, a config.json or a folder")
    if text.casefold() in _index():
        return _bundled(*_index()[text.casefold()], hf_overrides)
    path = Path(os.path.expanduser(text))  # of a user who is not there: the name as it is
    if path.suffix.casefold() == ".gguf" and path_exists(path):
        from kvplan.models.gguf import (
            gguf_config,  # only where there is such a file: a cold start stays short
        )

        return from_config(overlaid(gguf_config(path), hf_overrides), path.stem, str(path))
    if (named := _named_gguf(text, hf_overrides)) is not None and not path_exists(path):
        return named
    if path_exists(path):
        file = path / "config.json" if path.is_dir() else path
        name = path.name if path.is_dir() else _file_name(path)
        return from_config(overlaid(_with_sidecar(file), hf_overrides), name, str(file))
    if hub:
        config, name, source = _download(text)
        return from_config(overlaid(config, hf_overrides), name, source)
    if why := why_not_planned(text):
        raise KvplanError(why)
    looks_local = text.endswith(".json") or text.startswith((".", "/", "~"))
    what = "no such file or folder" if looks_local else "not a bundled model, a file or a folder"
    elsewhere = "; give its config.json instead, or kvplan estimate --hub asks the Hugging Face hub"
    elsewhere = elsewhere if text.count("/") == 1 and not looks_local else ""
    raise KvplanError(f"{text[:120]!r}: {what}{did_you_mean(text[:120], _known_names())}{elsewhere}")


def _named_gguf(text: str, overrides: Mapping[str, object]) -> ModelSpec | None:
    """A bundled model in a GGUF type that stands in a name: `publisher/Model-GGUF:Q4_K_M`, `Model-Q4_K_M.gguf`."""
    named = _gguf_type(text)
    base = find_bundled(named[0].rpartition("/")[2]) if named else None
    if named is None or base is None:
        return None
    kept = {key: value for key, value in _read_bundled(base).items() if key != "quantization_config"}
    kept |= {"quantization_config": {"quant_method": "gguf", "file_type": named[1]}}
    model = from_config(overlaid(kept, overrides), text, f"bundled: {kept.get('_source', 'unknown')}")
    return replace(model, planned_as=base.stem.replace("--", "/"))


def _gguf_type(text: str) -> tuple[str, str] | None:
    """(model, type) of a name that speaks of a GGUF file."""
    found = re.fullmatch(r"(.+?)(?:-GGUF)?[:.-](?:UD-)?([A-Z0-9_]+?)(?:_XL)?(?:\.gguf)?", text, re.IGNORECASE)
    if found is None or found[2].upper() not in GGUF_BITS or not re.search(r"gguf|:", text, re.IGNORECASE):
        return None
    return found[1], found[2].upper()


def bundled_models() -> tuple[str, ...]:
    """Names of the bundled models, `organisation/model`, sorted."""
    return tuple(path.stem.replace("--", "/") for path in _bundled_files())


def find_bundled(name: str) -> Path | None:
    """The bundled config of that name, or None. Ignores case and a missing organisation; knows aliases."""
    found = _index().get(name.casefold())
    return found[1] if found else None


def aliases() -> tuple[str, ...]:
    """Names of checkpoints that share a bundled one's config, sorted."""
    return tuple(sorted(read_json(catalog_dir() / "models" / "aliases.json")))


def overlaid(config: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    """The config with overrides: a section such as `text_config` key by key, all else as a whole."""
    laid = dict(config)
    for key, value in overrides.items():
        inner = laid.get(key)
        nested = key.endswith("_config") and isinstance(value, Mapping) and isinstance(inner, Mapping)
        laid[key] = overlaid(inner, value) if nested else value  # type: ignore[arg-type]
    return laid


def _bundled(name: str, file: Path, overrides: Mapping[str, object]) -> ModelSpec:
    config, own = overlaid(_read_bundled(file), overrides), file.stem.replace("--", "/")
    found = from_config(config, name, f"bundled: {config.get('_source', 'unknown')}")
    return found if name == own else replace(found, planned_as=own)


def _bundled_files() -> list[Path]:
    return sorted((catalog_dir() / "models").glob("*--*.json"))


@cache
def _index() -> dict[str, tuple[str, Path]]:
    """Every way to write a bundled model, in lower case -> its name and config; real names win over aliases."""
    named = {path.stem.replace("--", "/"): path for path in _bundled_files()}
    listed = read_json(catalog_dir() / "models" / "aliases.json")
    named |= {alias: named[str(target)] for alias, target in listed.items()}
    index: dict[str, tuple[str, Path]] = {}
    for name, path in named.items():
        index.setdefault(name.casefold(), (name, path))
        index.setdefault(name.rpartition("/")[2].casefold(), (name, path))
    return index


def _read_bundled(path: Path) -> dict[str, object]:
    """A bundled config; a quantised checkpoint names the one it was made from and adds its own keys."""
    config = read_json(path)
    base = config.get("_base")
    return config if base is None else {**read_json(_index()[str(base).casefold()][1]), **config}


def _known_names() -> list[str]:
    names = (*bundled_models(), *aliases())
    return [*names, *(name.rpartition("/")[2] for name in names)]


def path_exists(path: Path) -> bool:
    """Whether there is such a file or folder; False for what cannot be a name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL
        return False


def _file_name(path: Path) -> str:
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def _with_sidecar(file: Path) -> dict[str, object]:
    """The config, with ModelOpt's hf_quant_config.json folded in where it lies beside it, as vLLM does."""
    if not file.is_file():
        said = (
            f"{file.parent}: this folder has no config.json"
            if file.name == "config.json"
            else f"{file}: not a file"
        )
        raise KvplanError(said)
    config = read_json(file)
    if mode := sentence_pooling(file.parent):
        config = {**config, SENTENCES: mode}
    sidecar = file.parent / QUANTISATION
    if "quantization_config" in config or not sidecar.is_file():
        return config
    return {**config, "quantization_config": {**read_json(sidecar), "quant_method": "modelopt"}}


QUANTISATION = "hf_quant_config.json"
"""Where ModelOpt says how it quantised."""
BESIDE_CONFIG: tuple[Callable[[Path], tuple[str, ...]], ...] = (
    lambda folder: (MODULES, QUANTISATION),
    pooling_files,
)
"""What else of a repo is read, in turns: the second's names stand in a file of the first."""


def _download(repo: str) -> tuple[dict[str, object], str, str]:
    """Fetch a repo's config.json from the Hugging Face hub (the `hub` extra), and what stands beside it."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError:
        raise KvplanError("asking the hub needs huggingface_hub: pip install 'kvplan[hub]'") from None
    try:
        path = Path(hf_hub_download(repo, "config.json"))
        for read in BESIDE_CONFIG:
            for name in read(path.parent):
                with suppress(EntryNotFoundError):
                    hf_hub_download(repo, name)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise KvplanError(
            f"{repo!r}: the hub gave no config.json ({str(error).splitlines()[0][:150]})"
        ) from None
    return _with_sidecar(path), repo, f"hub: {repo}@{path.parent.name[:12]}"
