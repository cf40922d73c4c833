"""How a detector ranks the defects that a person has sorted: asked where `gate.known_defects` names their folder.

The folder is what `densitywatch assess` takes: good/ and a folder for each kind. A gate that reads it chooses by it. So
the figures of `assess` on the same images are then too good; keep other images for them
(docs/decisions/0035-a-history-in-tags.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal, cast

import numpy as np

from densitywatch.arrays import Floats
from densitywatch.data.decoding.images import decode_images
from densitywatch.data.inputs.sorted_folder import GOOD, find_layout
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.data.reading import images_at_once
from densitywatch.detector.detector import Detector, load
from densitywatch.errors import DataError
from densitywatch.params import Params
from densitywatch.registry.measuring_detectors import BATCH, finite_scores
from densitywatch.registry.resampling import Known, Measurement, bootstrap_counts, one_figure, wrong_pairs


def measure_known_defects(folder: Path, params: Params, root: Path) -> Known:
    """For each kind 1 - AUROC of its images among the good ones, by the detector in `folder`.

    Files that cannot be read are left out. Raises DataError where good/ or all kinds hold no image, ModelError for
    scores that are not finite.
    """
    address = str(params.gate.known_defects)
    if not is_local(address):
        raise DataError(f"{address}: a folder on this machine is asked for; fetch the images first")
    follow = params.inbox.follow_links
    layout = find_layout(root / local_path(address), follow_links=follow)
    detector = load(folder)
    names: list[str] = []
    scores: dict[str, Floats] = {}
    for kind, place in layout.kinds.items():
        found = list(_scored(place, detector, follow_links=follow))
        names += [f"{kind}/{path}" for paths, _ in found for path in paths]
        if found:
            scores[kind] = np.concatenate([of_part for _, of_part in found])
    if GOOD not in scores or len(scores) == 1:
        raise DataError(f"{address}: good/ and a folder next to it must hold images that can be read")
    good = scores.pop(GOOD)
    # good images and each kind are drawn anew by themselves, so that no sample is without one of them
    sets = [good, *scores.values()]
    counts = np.concatenate(
        [bootstrap_counts(np.arange(len(each)), params.seed + i) for i, each in enumerate(sets)], axis=1
    )
    kinds, start = {}, len(good)
    for kind, outlying in scores.items():
        figures = wrong_pairs(good, outlying, slice(start, start + len(outlying)), slice(len(good)))
        kinds[kind] = Measurement(f"error on {kind}", one_figure(figures, counts.shape[1]), "detector", figures)
        start += len(outlying)
    return Known(tuple(names), kinds, counts, {kind: min(len(good), len(each)) for kind, each in scores.items()})


def _scored(place: Path, detector: Detector, *, follow_links: bool) -> Iterator[tuple[list[str], Floats]]:
    """Paths and scores of the images in a folder, a few images in memory at a time."""
    files = _contents(place, follow_links=follow_links)
    resize = cast(Literal["crop", "pad", "stretch"], detector.resize)
    step = images_at_once(BATCH, detector.size)
    while part := list(islice(files, step)):
        data = [content for _, content in part]
        seen = decode_images(data, size=detector.size, channels=detector.channels, resize=resize)
        usable = [
            (path, one.pixels) for (path, _), one in zip(part, seen, strict=True) if not isinstance(one, DataError)
        ]
        if usable:
            yield [path for path, _ in usable], finite_scores(detector, np.stack([pixels for _, pixels in usable]))


def _contents(place: Path, *, follow_links: bool) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of each file that can be read."""
    for entry in entries(str(place), follow_links=follow_links, skipped=Counter()):
        with suppress(DataError):
            yield entry.path, entry.read()
