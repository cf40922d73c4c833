"""Copies of the reviewed originals, sorted by verdict, for the next version of the dataset."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from densitywatch.batches.batch_report import flagged
from densitywatch.batches.review.judging import summary_of
from densitywatch.batches.review.random_draw import drawn, fair_sample
from densitywatch.batches.verdicts import VERDICTS, read_verdicts
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.data.training_only import MARK
from densitywatch.errors import DataError
from densitywatch.files import write_whole
from densitywatch.progress import say


def collect(folder: Path, target: Path, root: Path) -> dict[str, int]:
    """Copy the originals of the reviewed images to target/fine and target/outlier. Returns how many are in each.

    They are found in the batch's source by their content and named after it, so doing it twice adds nothing. Where a
    verdict was changed or taken back since, its copy is removed. A fine image that was only looked at because it was
    flagged is named so that `prepare` takes it for training alone (data/training_only.py). The fine ones of a random
    draw have plain names once the whole draw has verdicts: then they are a fair sample and may go into any split.

    Raises DataError when the source is gone or some of the images are no longer in it.
    """
    verdicts = read_verdicts(folder)
    fair, sample = fair_sample(folder, verdicts), drawn(folder)
    wanted = {
        digest: (verdict, digest if verdict == "outlier" or digest in fair else f"{MARK}{digest}")
        for (_, digest), verdict in verdicts.items()
    }
    identity = summary_of(folder)["identity"]
    source = str(identity["source"])
    stale = {
        digest: [
            copy
            for verdict in VERDICTS
            for name in (digest, f"{MARK}{digest}")
            if (verdict, name) != wanted.get(digest)
            for copy in (target / verdict).glob(f"{name}*")
        ]
        for digest in {digest for _, digest in (*flagged(folder), *sample, *verdicts)}
    }
    missing = wanted.keys() | {digest for digest, copies in stale.items() if copies}
    where = str(root / local_path(source)) if is_local(source) else source
    follow = bool(identity.get("follow_links"))
    for entry in entries(where, follow_links=follow) if missing else ():
        try:
            data = entry.read()
        except DataError:
            continue  # quarantined: never scored, so never reviewed
        digest = hashlib.sha256(data).hexdigest()
        if digest in missing:
            if digest in wanted:
                verdict, name = wanted[digest]
                suffix = re.search(r"\.[A-Za-z0-9]{1,5}$", entry.path)
                write_whole(target / verdict / f"{name}{suffix.group(0).lower() if suffix else ''}", data)
            for copy in stale.get(digest, ()):  # only now: the original is there, so nothing is lost
                copy.unlink()
            missing.discard(digest)
            if not missing:
                break
    if missing := missing & wanted.keys():
        raise DataError(f"{source}: {len(missing)} of {len(wanted)} reviewed images are not there any more")
    fine = [name for verdict, name in wanted.values() if verdict == "fine"]
    _tell(sum(name.startswith(MARK) for name in fine), len(sample), sum(key in verdicts for key in sample))
    return {"outlier": len(wanted) - len(fine), "fine": len(fine)}


def _tell(marked: int, draw: int, judged: int) -> None:
    if marked:
        say(f"review: {marked} of the fine images are for training alone: their names begin with {MARK}")
    if judged < draw:
        say(
            f"review: {judged} of the {draw} images drawn at random have a verdict; once all have one, the fine ones"
            " among them may go into any split"
        )
