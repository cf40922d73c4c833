"""Profiles: a few keys that replace those of params.yaml, whose comments and order stay."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from densitywatch.errors import ParamsError
from densitywatch.params import load_params

_NULL = "tag:yaml.org,2002:null"


def apply_profile(name: str, root: Path) -> list[str]:
    """Put the keys of `profiles/<name>.yaml` into `params.yaml` and return those whose value changed, as `a.b.c`.

    A second time changes nothing. The result is checked before it replaces the file, so params.yaml is always usable.

    Raises ParamsError when there is no such profile or the result is not valid.
    """
    folder = root / "profiles"
    profile = folder / f"{name}.yaml"
    if not re.fullmatch(r"[a-z0-9_]+", name) or not profile.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise ParamsError(f"no profile '{name}' in {folder}; there is: {known}")
    target = root / "params.yaml"
    round_trip = YAML()  # round-trip: keeps comments and order
    round_trip.width = 4096
    round_trip.preserve_quotes = True
    round_trip.representer.add_representer(type(None), lambda dumper, _: dumper.represent_scalar(_NULL, "null"))
    params, overlay = _read(round_trip, target), _read(round_trip, profile)
    changed = _merge(params, overlay, "")
    if not changed:
        return []
    text = io.StringIO()
    round_trip.dump(params, text)
    temporary = root / f".params.yaml.{os.getpid()}"
    try:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        try:
            load_params(temporary)
        except ParamsError as error:
            raise ParamsError(f"{profile}: does not fit: {str(error).removeprefix(f'{temporary}: ')}") from None
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return changed


def _read(round_trip: YAML, path: Path) -> MutableMapping[str, Any]:
    try:
        content = round_trip.load(path.read_text(encoding="utf-8"))  # ruamel's round-trip loader builds no objects
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; run from the project's top folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, MutableMapping):
        raise ParamsError(f"{path}: expected a mapping of blocks such as `data:` and `models:`")
    return content


def _merge(base: MutableMapping[str, Any], overlay: Mapping[str, Any], prefix: str) -> list[str]:
    """Put `overlay` into `base`; mappings are merged, everything else is replaced."""
    changed = []
    for key, value in overlay.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), MutableMapping):
            changed += _merge(base[key], value, f"{prefix}{key}.")
        elif key not in base or base[key] != value:
            base[key] = value
            changed.append(f"{prefix}{key}")
    return changed
