"""What `--model` names, recognised by its content: a preset, our JSON, a Hugging Face config, a MaxText yml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from autotune.meshes.fields import did_you_mean, json_object, one_line, read_text
from autotune.meshes.transformer import read_transformer
from autotune.model_files.huggingface import read_huggingface
from autotune.model_files.maxtext import is_maxtext, read_maxtext
from autotune.model_files.read_model import CAPACITY, ReadModel, architecture_of, with_capacity
from autotune.model_files.yaml_keys import doubled_key
from autotune.models.presets import PRESETS

OWN_KEYS = ("layers", "d_model", "d_ff")
"""Keys by which our own JSON is recognised."""


def read_model(model: str, settings: Sequence[str] = ()) -> ReadModel:
    """The model that `--model` names, with `KEY=VALUE` settings in place of what its file says.

    ValueError in one line where it is none, or where the price would be of another model.
    """
    path = Path(model)
    changes = dict(_setting(text) for text in settings)
    if model in PRESETS and not path.is_dir():
        preset = ReadModel(architecture=architecture_of(PRESETS[model]), source="preset", shape=PRESETS[model])
        return _with_room(preset, changes, f"{model} is a preset, which has no other key to set; give a model file")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model {model}: the folder holds no config.json")
        path = path / "config.json"
    if not path.is_file():
        raise ValueError(_is_nothing(model))
    values = _parsed(path)
    where = f"model file {path}"
    name = _name_of(path, values)
    if is_maxtext(values):
        return read_maxtext(_with_base(path, values, changes), where, _maxtext_name(path, values, changes), (*changes,))
    if "model_type" in values or "text_config" in values or "architectures" in values:
        theirs = {key: value for key, value in changes.items() if key != CAPACITY}
        return _with_room(read_huggingface(_changed(values, theirs), where, name, (*theirs,)), changes)
    if any(key in values for key in OWN_KEYS):
        shape = read_transformer(path)
        ours = ReadModel(architecture=architecture_of(shape), source="JSON of a shape", shape=shape)
        return _with_room(ours, changes, f"{path} is a shape of ours; change the file")
    raise ValueError(
        f"{where}: is no model that is known here: a Hugging Face config has model_type, a MaxText yml decoder_block, "
        f"our own JSON {', '.join(OWN_KEYS)}"
    )


def _with_room(model: ReadModel, changes: Mapping[str, Any], others: str | None = None) -> ReadModel:
    """The model with the `capacity_factor` that a setting says. `others`: why no other key can be set; None: it can."""
    for key in changes:
        if others and key != CAPACITY:
            raise ValueError(f"--set {key}: {others}")
    return with_capacity(model, changes[CAPACITY]) if CAPACITY in changes else model


def _is_nothing(model: str) -> str:
    """What is wrong with a name that is no preset, no folder and no regular file."""
    if Path(model).exists():
        return f"model file {model}: is no regular file"
    if "/" in model and not model.endswith((".json", ".yml", ".yaml")):
        return (
            f"model: {model!r} is no file or folder here, and nothing is downloaded; save the config.json of that "
            "model and give its path"
        )
    if model.endswith((".json", ".yml", ".yaml")):
        return f"model file {model}: No such file or directory"
    close = did_you_mean(model, PRESETS)
    return (
        f"model: {model!r} is no preset ({', '.join(PRESETS)}) and no .json file, no folder with a config.json and no "
        f".yml file{close}"
    )


def _parsed(path: Path) -> dict[str, Any]:
    """The mapping that a file holds: JSON, or YAML where its name says so."""
    return _read_as_it_is(path, path.stat().st_mtime_ns)


@cache
def _read_as_it_is(path: Path, modified: int) -> dict[str, Any]:
    """The file as of the time it was modified: a command asks for the model, the job and the layout of one file, and a
    `base.yml` takes a tenth of a second to parse. (`Keys` changes a copy.)"""
    where, text = f"model file {one_line(path)}", read_text(path, "model file")
    if path.suffix in (".yml", ".yaml"):
        values = _yaml(text, where)
        values = {} if values is None else values
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise ValueError(f"{where}: must hold one mapping")
        return values
    return json_object(text, where)


def _yaml(text: str, where: str) -> Any:
    """The value of a YAML text. ValueError, in one line, where it is none.

    The constructors of PyYAML raise errors of Python's own, beside `YAMLError`, for a value that its tag or its form
    does not allow: a date with month 13, `!!bool maybe`, `!!timestamp x`, lists that nest too deeply.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        twice = doubled_key(node)
        value = None if node is None or twice else loader.construct_document(node)
    except RecursionError:
        raise ValueError(f"{where}: not YAML of ours: nested too deeply") from None
    except (yaml.YAMLError, ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
        raise ValueError(f"{where}: not YAML: {one_line(' '.join(str(error).split()))}") from None
    if twice:
        raise ValueError(f"{where}: {twice}")
    return value


def _name_of(path: Path, values: Mapping[str, Any]) -> str:
    """What the model is called: what its file says, else its folder or its file."""
    told = values.get("_name_or_path")
    if isinstance(told, str) and told.strip("./") and not told.startswith("/"):
        return told.rstrip("/").rpartition("/")[2]
    if path.name == "config.json":
        return path.resolve().parent.name or "config"
    return path.stem


def _setting(text: str) -> tuple[str, Any]:
    """(key, value) of `KEY=VALUE`, the value as YAML reads it."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {text}: write KEY=VALUE")
    try:
        return key.strip(), _number(_yaml(value, f"--set {text}"))
    except ValueError:
        return key.strip(), value


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text; as a number where it is one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A Hugging Face config with some keys set; those of a text part are set there."""
    changed, text = dict(values), values.get("text_config")
    if isinstance(text, Mapping):
        changed["text_config"] = {**text, **{key: value for key, value in changes.items() if key not in values}}
        return changed | {key: value for key, value in changes.items() if key in values}
    return changed | dict(changes)


# MaxText: base.yml under the model's yml under the command line.


def _with_base(path: Path, values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a run, as MaxText puts them together.

    `base.yml` itself takes the model that `model_name` names, from `models/` beside it. A model's yml takes the
    `base.yml` beside it or in the folder above, where there is one. What is set by hand wins.
    """
    if path.stem == "base" or "run_name" in values and "base_config" not in values:
        name = changes.get("model_name", values.get("model_name", "default"))
        if name in ("default", "", None):
            return {**values, **changes}
        file = path.parent / "models" / f"{name}.yml"
        if not isinstance(name, str) or not file.is_file():
            raise ValueError(f"model file {path}: model_name={name!r}: there is no file {file}")
        return {**values, **_parsed(file), **changes}
    named = values.get("base_config")
    if named is not None:  # a run's own yml over another one, which takes the model that the run names
        if not isinstance(named, str):
            raise ValueError(f"model file {path}: base_config={named!r} must be a path")
        base = _found_above(path, named)
        own = {key: value for key, value in values.items() if key != "base_config"}
        put = _with_base(base, {**_parsed(base), **own}, changes)
        return {**put, **own, **changes} if values.get("override_model_config") else put
    for base in (path.parent / "base.yml", path.parent.parent / "base.yml"):
        if base.is_file() and base != path:
            return {**_parsed(base), **values, **changes}
    return {**values, **changes}


def _found_above(path: Path, named: str) -> Path:
    """The file that a yml names, beside it or in a folder above, as MaxText looks for it."""
    for folder in path.resolve().parents[:4]:
        if (folder / named).is_file():
            return folder / named
    raise ValueError(f"model file {path}: base_config={named!r}: there is no such file beside it or above")


def _maxtext_name(path: Path, values: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    name = changes.get("model_name", values.get("model_name"))
    return str(name) if name and name != "default" else path.stem
