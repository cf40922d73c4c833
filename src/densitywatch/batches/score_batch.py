"""`densitywatch score SOURCE`: every file of a batch gets a row, and the results appear whole or not at all.

The result depends on the files, the detector and the rates alone. So the same batch twice, two jobs at once, or a job
killed at any point and started again all end in the same bytes; what differs from run to run is in run.json:

    results/<batch>/        scores.parquet  summary.json  report.html  gallery.parquet  run.json  (verdicts.json)
    results/.<batch>.densitywatch/  chunks already scored, until the results stand
    results/.<batch>.lock   held by the job that works on the batch
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from densitywatch.batches import results_folder as publishing
from densitywatch.batches.batch_report import write_batch_report
from densitywatch.batches.chunks import score_in_chunks
from densitywatch.batches.gallery import write_gallery
from densitywatch.batches.past_batches import drift_from_past
from densitywatch.batches.results import RUN, PublishedChunks, stand, write_scores
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.data.inputs.archives import ARCHIVE
from densitywatch.data.inputs.clutter import skipped_line
from densitywatch.data.inputs.source import entries, is_local, local_path, without_secrets
from densitywatch.errors import DataError, OutliersFound, ParamsError
from densitywatch.files import file_digest, full_disk_as_error, read_json, write_whole
from densitywatch.params import Params
from densitywatch.progress import say, track
from densitywatch.text import as_text

FORMAT = "2"


def score_source(
    source: str,
    params: Params,
    root: Path,
    out: Path | None = None,
    detector: Any = None,
    *,
    false_discovery_rate: float | None = None,
    strict: bool = False,
    limit: int | None = None,
    fail_on: int | None = None,
    label_model: str | None = None,
    follow_links: bool | None = None,
) -> dict[str, Any]:
    """Score every file of `source` and write the results to `out` (by default <inbox.results>/<name of the source>).

    `source`: a folder, a glob, an image, a zip or tar archive, a Parquet file with image bytes, or any fsspec address.
    `detector`: a folder, a registry address, or a loaded detector; None takes models/detector. `false_discovery_rate`
    goes before the detector's own; `strict` holds it for this calibration set and not only on average over such sets
    (conformal.conditional_p_values). `limit`: only that many files, from the first. Returns the summary and, under
    `folder`, where the results are. Results of the same files, detector and rates are left as they are.
    `label_model`: a folder or registry address of a class-conditional density, which fills `label` and
    `label_probability`. `follow_links` overrides inbox.follow_links: whether symbolic links of the source are read.

    Raises DataError when the source is missing or unreachable or `out` holds something else, ModelError when there is
    no such detector, OutliersFound when at least `fail_on` images are flagged (after the results are written).
    """
    if false_discovery_rate is not None and not 0 < false_discovery_rate < 1:
        raise ParamsError(f"the false-discovery rate must lie between 0 and 1 (given: {false_discovery_rate})")
    for name, value in (("limit", limit), ("fail-on", fail_on)):
        if value is not None and value < 1:
            raise ParamsError(f"{name} must be at least 1 (given: {value})")
    shown = _shown(source, root)
    follow = params.inbox.follow_links if follow_links is None else follow_links
    skipped: Counter[str] = Counter()
    where = str(root / local_path(source)) if is_local(source) else source
    found = entries(where, follow_links=follow, skipped=skipped)
    loaded, digest = load_detector(detector, params, root)
    if label_model is not None:
        loaded, digest = with_labels(loaded, digest, label_model, params, root)
    rate = false_discovery_rate if false_discovery_rate is not None else loaded.false_discovery_rate
    identity = {
        "format": FORMAT,
        "source": shown,
        "detector": digest,
        "size": loaded.size,
        "channels": loaded.channels,
        "resize": loaded.resize,
        "chunk": params.detector.batch_size,
        "limit": limit,
        "strict": strict,
        **({"follow_links": True} if follow else {}),
    }
    folder = publishing.behind_link(out if out is not None else results_folder(source, params, root))
    if is_local(source) and folder.resolve().is_relative_to((root / local_path(source)).resolve()):
        raise DataError(f"{as_text(str(folder))}: lies inside the source; choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with publishing.only_job(folder), full_disk_as_error(folder):
        publishing.recover(folder)
        read_verdicts(folder)  # a person's work that cannot be read stops the job before hours of scoring, not after
        before = publishing.read_summary(folder)
        started = time.monotonic()
        work = publishing.work_folder(folder, identity | {"rate": rate})
        same = before is not None and before["identity"] == identity
        steps = score_in_chunks(
            itertools.islice(found, limit),
            loaded,
            work,
            size=params.detector.batch_size,
            threshold=rate,
            published=_published(folder, params.detector.batch_size) if same else _none,
        )
        chunks = list(track(steps, f"score: chunks of {params.detector.batch_size} files"))
        publishing.drop_chunks_from(work, len(chunks))
        fresh = publishing.fresh_folder(folder)
        summary = write_scores(work, fresh, loaded, rate, identity, skipped=skipped)
        if (line := skipped_line(skipped)) is not None:
            say(f"score: {as_text(folder.name)}: {line}")
        if before == summary and stand(folder, fresh):
            publishing.discard(folder)
            say(f"score: {as_text(folder.name)}: these very files have been scored; the results stand")
        else:
            write_gallery(work, fresh, loaded, root)
            note_run(
                fresh,
                seconds=round(time.monotonic() - started, 3),
                files=sum(files for files, _ in chunks),
                scored_now=sum(scored for _, scored in chunks),
            )
            publishing.keep_verdicts(folder, fresh)
            write_batch_report(fresh)
            publishing.publish(fresh, folder)
        past = drift_from_past(folder, digest)
        note_run(folder, **past)
    flagged = int(summary["outliers"])
    if fail_on is not None and flagged >= fail_on:
        raise OutliersFound(f"{flagged} of {summary['scored']} images are outliers (--fail-on {fail_on}); see {folder}")
    return {**summary, **past, "folder": str(folder)}


def note_run(folder: Path, **facts: Any) -> None:
    """Add to run.json, which holds what differs from one run to the next; `listing` in it makes a batch done."""
    write_whole(folder / RUN, json.dumps({**read_run(folder), **facts}, indent=2) + "\n", new_folder=False)


def read_run(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where it is missing or damaged: then the batch is looked at again, and no more."""
    try:
        run = read_json(folder / RUN)
    except (FileNotFoundError, DataError):
        return {}
    return run if isinstance(run, dict) else {}


def load_detector(detector: Any, params: Params, root: Path) -> tuple[Any, str]:
    """A detector and the sha256 of all that it is made of."""
    if not isinstance(detector, Path | str | None):
        return detector, str(getattr(detector, "digest", "unknown"))
    if isinstance(detector, str) and detector.startswith("models:/"):
        from densitywatch.registry.versions import download_model

        folder = Path(download_model(detector, params, root))
    else:
        folder = root / (detector or "models/detector")
    from densitywatch.detector.detector import load

    loaded = load(folder)
    # the same detector has the same digest in models/ and as the registry packs it, with its models inside
    parts = {
        str(path.relative_to(folder)).removeprefix("members/"): path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    for name in loaded.facts["models"]:
        parts.setdefault(f"{name}/model.safetensors", folder.parent / name / "model.safetensors")
    whole = hashlib.sha256()
    for name in sorted(parts):
        whole.update(f"{name} {file_digest(parts[name])}\n".encode())
    return loaded, whole.hexdigest()


def with_labels(detector: Any, digest: str, where: str, params: Params, root: Path) -> tuple[Any, str]:
    """The detector with labels from the model at `where`, and the digest of both."""
    from densitywatch.batches.labels import WithLabels
    from densitywatch.models.storage import WEIGHTS, load_model_folder

    if where.startswith("models:/"):
        from densitywatch.registry.versions import download_model

        folder = Path(download_model(where, params, root))
    else:
        folder = root / where
    labelled = WithLabels(detector, load_model_folder(folder), where)
    return labelled, hashlib.sha256(f"{digest} {file_digest(folder / WEIGHTS)}".encode()).hexdigest()


def batch_name(source: str) -> str:
    """The folder name of a source's results: its last part, made of safe characters."""
    last = [part for part in re.split(r"[/\\]|::", source.rstrip("/")) if part][-1:] or ["batch"]
    plain = ARCHIVE.sub("", last[0])
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", plain).strip("._")[:100]
    if safe == plain:
        return safe
    return f"{safe or 'batch'}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"


def results_folder(source: str, params: Params, root: Path) -> Path:
    """Where the results of `source` go: <inbox.results>/<name>; a namesake from elsewhere keeps its own."""
    shown = _shown(source, root)
    folder = root / params.inbox.results / batch_name(shown)
    if publishing.owner(folder) in (None, shown):
        return folder
    return folder.with_name(f"{folder.name}-{hashlib.sha256(shown.encode()).hexdigest()[:8]}")


def _shown(source: str, root: Path) -> str:
    """The source as results name it: relative to the project where it lies inside, without passwords."""
    if not is_local(source):
        return as_text(without_secrets(source))
    path = root / local_path(source)
    path = path.parent.resolve() / path.name if path.name not in ("", "..") else path.resolve()
    inside = path.is_relative_to(root.resolve())
    return as_text(str(path.relative_to(root.resolve()) if inside else path))


def _published(folder: Path, chunk: int) -> Callable[[int], pa.Table | None]:
    """The published scores chunk by chunk; None for every chunk where there are none that can be read."""
    try:
        return PublishedChunks(folder, chunk)
    except (OSError, ValueError, pa.ArrowException):
        return _none


def _none(number: int) -> None:
    return None
