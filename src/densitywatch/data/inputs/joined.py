"""Names of sources that are joined in one dataset."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from densitywatch.data.inputs.source import without_secrets


def short_name(address: str) -> str:
    """The last part of an address in letters, digits, dots, dashes and underscores; may be empty."""
    last = without_secrets(address).rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "_", last).strip("._")


def source_names(addresses: Sequence[str]) -> list[str]:
    """A different name for each address, which goes in front of its images' paths; empty where there is only one.

    Where two addresses end alike, their places in the list tell them apart: 1-images, 2-images.
    """
    if len(addresses) == 1:
        return [""]
    names = [short_name(address) for address in addresses]
    counts = Counter(name.lower() for name in names)
    found = [
        name if name and counts[name.lower()] == 1 else f"{number}-{name}".rstrip("-")
        for number, name in enumerate(names, start=1)
    ]
    if len({name.lower() for name in found}) < len(found):  # a folder may be called 2-images itself
        found = [f"{number}-{name}".rstrip("-") for number, name in enumerate(names, start=1)]
    return found
