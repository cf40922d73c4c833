"""Copies of the reviewed originals, sorted by verdict, for the next version of the dataset."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import summary_of
from densitywatch.batches.verdicts import VERDICTS, read_verdicts
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.errors import DataError
from densitywatch.files import write_whole


def collect(folder: Path, target: Path, root: Path) -> dict[str, int]:
    """Copy the originals of the reviewed images to target/fine and target/outlier. Returns how many are in each.

    They are found in the batch's source by their content and named after it, so doing it twice adds nothing. Where a
    verdict was changed or taken back since, its copy is removed. Raises DataError when the source is gone or some of
    the images are no longer in it.
    """
    wanted = {digest: verdict for (_, digest), verdict in read_verdicts(folder).items()}
    identity = summary_of(folder)["identity"]
    source = str(identity["source"])
    stale = {
        digest: [
            copy for other in VERDICTS if other != wanted.get(digest) for copy in (target / other).glob(f"{digest}*")
        ]
        for _, digest in flagged(folder)
    }
    missing = wanted.keys() | {digest for digest, copies in stale.items() if copies}
    where = str(root / local_path(source)) if is_local(source) else source
    follow = bool(identity.get("follow_links"))
    for entry in entries(where, follow_links=follow) if missing else ():
        try:
            data = entry.read()
        except DataError:
            continue  # quarantined: never flagged, so never reviewed
        digest = hashlib.sha256(data).hexdigest()
        if digest in missing:
            if digest in wanted:
                suffix = re.search(r"\.[A-Za-z0-9]{1,5}$", entry.path)
                write_whole(target / wanted[digest] / f"{digest}{suffix.group(0).lower() if suffix else ''}", data)
            for copy in stale[digest]:  # only now: the original is there, so nothing is lost
                copy.unlink()
            missing.discard(digest)
            if not missing:
                break
    if missing := missing & wanted.keys():
        raise DataError(f"{source}: {len(missing)} of {len(wanted)} reviewed images are not there any more")
    counts = {verdict: sum(value == verdict for value in wanted.values()) for verdict in VERDICTS}
    return {str(verdict): count for verdict, count in counts.items()}
