"""Where the images of each kind and their masks lie in a folder that somebody has sorted.

good/  <kind>/...  ground_truth/<kind>/NAME_mask.png        or NAME.png
test/good/  test/<kind>/...  ground_truth/<kind>/...        MVTec's; `test` itself may be given too
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from densitywatch.data.inputs.clutter import MASKS, is_clutter
from densitywatch.data.inputs.entries import Entry
from densitywatch.data.inputs.source import entries
from densitywatch.errors import DataError
from densitywatch.text import as_text

GOOD = "good"
LINKED = "a symbolic link to a folder; not followed (inbox.follow_links in params.yaml, or assess --follow-links)"


@dataclass
class Layout:
    """The folders of an assessment."""

    kinds: dict[str, Path]
    """`good` first, then the others by name."""
    masks: dict[str, Path]
    """The folder of the masks of each kind that has one."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(name, reason) of what lies next to the kinds and is none."""


def find_layout(folder: Path, *, follow_links: bool = False) -> Layout:
    """The kinds in `folder`. Raises DataError where it has no `good`, or nothing next to it."""
    shown = as_text(str(folder))
    if folder.is_file():
        raise DataError(f"{shown}: a file; unpack it, and give the folder that has good/")
    if not folder.is_dir():
        raise DataError(f"{shown}: no such folder; give one that has good/ and a folder for each kind of bad image")
    test = folder / "test"
    top = test if not (folder / GOOD).is_dir() and (test / GOOD).is_dir() else folder
    if not (top / GOOD).is_dir():
        raise DataError(
            f"{shown}: has no folder good/, nor test/good/; put good images that the detector has not seen there"
        )
    left_out: list[tuple[str, str]] = []
    kinds = []
    for child in _children(top):
        name = as_text(child.name)
        if is_clutter(f"{child.name}/-") or is_clutter(child.name) or child.name.lower() in MASKS:
            continue
        if not child.is_dir():
            left_out.append((name, "lies next to the folders of the kinds, in none of them"))
        elif child.is_symlink() and not follow_links:
            left_out.append((name, LINKED))
        else:
            kinds.append(child)
    if not any(kind.name == GOOD for kind in kinds):
        raise DataError(f"{shown}: good/ is {LINKED}")
    if len(kinds) == 1:
        raise DataError(
            f"{shown}: has good/ and no other folder; put the bad images into a folder for each kind next to it"
        )
    by_name = {as_text(kind.name): kind for kind in sorted(kinds, key=lambda kind: (kind.name != GOOD, kind.name))}
    masks = {}
    place = _folder_of_masks(folder, top, follow_links)
    for child in [] if place is None else _children(place):
        name = as_text(child.name)
        if child.is_symlink() and not follow_links and child.is_dir():
            left_out.append((f"{child.parent.name}/{name}", LINKED))
        elif child.is_dir() and name in by_name:
            masks[name] = child
        elif not is_clutter(child.name):
            left_out.append((f"{child.parent.name}/{name}", "masks are read from a folder with the name of their kind"))
    masks.pop(GOOD, None)  # good images have no defect to mark
    return Layout(by_name, masks, left_out)


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir(), key=os.fsencode)
    except OSError as error:
        raise DataError(f"{as_text(str(folder))}: cannot be listed ({error.strerror})") from None


def _folder_of_masks(folder: Path, top: Path, follow_links: bool) -> Path | None:
    """The folder of the masks: in what was given, or next to `test`."""
    inside = [top, folder] if top != folder else [folder]
    if top.resolve().name.lower() == "test":
        inside.append(top.resolve().parent)
    for place in inside:
        for child in _children(place):
            if child.name.lower() in MASKS and child.is_dir() and (follow_links or not child.is_symlink()):
                return child
    return None


class MasksOfKind:
    """The masks of one kind, found by the name of their image. Those that were asked for are known."""

    def __init__(self, folder: Path | None, *, follow_links: bool = False) -> None:
        self._entries: dict[str, Entry] = {}
        self.unusable: list[tuple[str, str]] = []
        """(name, reason) of files that are no mask of one image."""
        self._asked: set[str] = set()
        if folder is None or not folder.is_dir():
            return
        for entry in entries(str(folder), follow_links=follow_links, skipped=Counter()):
            key = re.sub(r"_mask$", "", _stem(entry.path), flags=re.IGNORECASE)
            if not entry.independent:
                self.unusable.append((entry.path, "in an archive; masks are read from files alone"))
            elif key in self._entries:
                self.unusable.append((entry.path, f"{self._entries[key].path} is a mask of the same image"))
            else:
                self._entries[key] = entry

    def __len__(self) -> int:
        return len(self._entries)

    def of(self, image: str) -> Entry | None:
        """The mask of the image with this path below its kind's folder."""
        key = _stem(image)
        self._asked.add(key)
        return self._entries.get(key)

    def without_image(self) -> list[tuple[str, str]]:
        """(name, reason) of the masks that no image asked for."""
        left = [entry.path for key, entry in self._entries.items() if key not in self._asked]
        return [(path, "a mask without an image of its name") for path in left]


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)
