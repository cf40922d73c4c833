"""The rules that give each image the name of its group; an empty name: no group is known, the image is alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from densitywatch.data.groups.likeness import Looks, Neighbours, distances, near_duplicates
from densitywatch.data.groups.union import Union

WINDOW = 5
"""Images this many places apart in the name order are compared when runs of alike images are looked for."""
TIME = "%Y:%m:%d %H:%M:%S"
"""How EXIF writes a time."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an image before it is grouped."""

    path: str
    source: str = ""
    """The address that it came from, where there are several. No group spans two."""
    label: int = -1
    taken: str = ""
    """Its EXIF time, or empty."""


def by_folder(images: Sequence[Known]) -> list[str]:
    """The folder that an image is in; none at the top of its source, whose name begins the path of joined sources."""
    folders = [image.path.rpartition("/")[0] for image in images]
    return ["" if folder == image.source else folder for folder, image in zip(folders, images, strict=True)]


def by_pattern(images: Sequence[Known], pattern: str) -> list[str]:
    """What the regular expression's one capture finds in the path without its extension."""
    compiled = re.compile(pattern)
    found = [compiled.search(without_extension(image.path)) for image in images]
    return ["" if match is None else match.group(1) or "" for match in found]


def without_extension(path: str) -> str:
    """A path without the last extension of its file."""
    return re.sub(r"(?<=[^/])\.[^./]*$", "", path)


def by_time(images: Sequence[Known], minutes: float) -> list[str]:
    """Blocks of EXIF time: a block begins with its first image and lasts `minutes`. Each source has its own."""
    names = [""] * len(images)
    timed = sorted((image.source, time, index) for index, image in enumerate(images) if (time := taken(image.taken)))
    before, begin = None, datetime.min
    for source, time, index in timed:
        if source != before or time - begin >= timedelta(minutes=minutes):
            before, begin = source, time
        names[index] = begin.strftime("%Y-%m-%d %H:%M:%S")
    return names


def taken(text: str) -> datetime | None:
    """EXIF's text as a time; None where it is none."""
    try:
        return datetime.strptime(text, TIME)
    except ValueError:
        return None


def by_likeness(images: Sequence[Known], looks: Looks, near: Neighbours) -> list[str]:
    """Near-duplicates anywhere, and runs of nearly equal images in the name order; named after their first image.

    Runs are looked for only where neighbours are more often nearly equal than random pairs. Images up to WINDOW places
    apart are compared, so one frame that differs does not end a run.
    """
    joined = Union(len(images))
    sources = np.array([image.source for image in images])
    for source in np.unique(sources):  # pairs of one source connect its images; through another one's they might not
        rows = np.flatnonzero(sources == source)
        for one, other in near_duplicates(looks.hashes[rows]):
            joined.join(int(rows[one]), int(rows[other]))
    if near.alike:
        for apart in range(1, WINDOW + 1):
            first, second = near.order[:-apart], near.order[apart:]
            together = near.stratum[first] == near.stratum[second]
            first, second = first[together], second[together]
            close = distances(looks.coarse, first, second) < near.limit
            for one, other in zip(first[close].tolist(), second[close].tolist(), strict=True):
                joined.join(one, other)
    sets = joined.sets()
    names = [""] * len(images)
    for members in sets:
        if len(members) > 1:
            name = min(images[index].path for index in members)
            for index in members:
                names[index] = name
    return names
