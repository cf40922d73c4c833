"""How long a training took and which run logged it, kept outside of what DVC hashes.

Seconds and run ids inside a model's folder would give equal weights another hash, and every later stage would run
again. var/runs/NAME.json has an entry for each weights file by its digest, so that weights from DVC's cache are matched
with the figures of their own training. A machine that did not train the weights has no entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from densitywatch.errors import DataError
from densitywatch.files import file_digest, read_json, write_whole

FOLDER = Path("var/runs")
KEPT = 200


def note_training(weights: Path, name: str, root: Path, facts: dict[str, Any]) -> None:
    """Note `facts` about the training of `name` that gave the file `weights`."""
    known = _known(name, root)
    digest = file_digest(weights)
    known.pop(digest, None)
    kept = dict(list(known.items())[-KEPT + 1 :]) | {digest: facts}
    write_whole(root / FOLDER / f"{name}.json", json.dumps(kept, indent=1) + "\n")


def training_of(weights: Path, name: str, root: Path) -> dict[str, Any]:
    """What was noted about the training that gave the file `weights`; empty where nothing was."""
    known = _known(name, root)
    facts = known.get(file_digest(weights)) if known else None
    return facts if isinstance(facts, dict) else {}


def _known(name: str, root: Path) -> dict[str, Any]:
    """Every entry, the oldest first; none where the file is missing or damaged, which should not stop a stage."""
    try:
        known = read_json(root / FOLDER / f"{name}.json")
    except (FileNotFoundError, DataError):
        return {}
    return known if isinstance(known, dict) else {}
