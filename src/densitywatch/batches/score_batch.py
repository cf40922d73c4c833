"""`densitywatch score SOURCE`: every file of a batch gets a row, and the results appear whole or not at all.

The result depends on the files, the detector and the rates alone, and, where a stream is judged with one budget, on the
batch's place in it, which it keeps (streams.py). So the same batch twice, two jobs at once, or a job
killed at any point and started again all end in the same bytes. What differs from run to run is in run.json.

The way of a batch: list the source's files (data/inputs), load the detector (scorer.py), read, decode and score in
chunks (chunks.py; on several machines: on_ray.py), write scores.parquet and summary.json (results.py), the pictures
(gallery.py) and the page (batch_report.py), and publish all of it at once (publishing.py).
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from densitywatch.batches import publishing
from densitywatch.batches.batch_report import write_batch_report
from densitywatch.batches.chunks import files_in_chunk, score_in_chunks
from densitywatch.batches.copying import copy_results
from densitywatch.batches.drift_state import alarm_in_words, drift_of_batch, stream_of
from densitywatch.batches.gallery import write_gallery
from densitywatch.batches.on_ray import Batch, check_ray, score_on_ray
from densitywatch.batches.over_time import note_batch
from densitywatch.batches.past_batches import drift_from_past
from densitywatch.batches.results import PublishedChunks, are_same, write_scores
from densitywatch.batches.results_folder import behind_link, note_run, read_summary, results_folder, shown_source
from densitywatch.batches.scorer import Scorer, load_scorer
from densitywatch.batches.streams import Rule, check_stream, stream_file
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.data.inputs.clutter import skipped_line
from densitywatch.data.inputs.source import entries, is_local, local_path
from densitywatch.errors import DataError, OutliersFound, ParamsError
from densitywatch.params import Control, Params
from densitywatch.progress import say, track
from densitywatch.sizes import for_json
from densitywatch.text import as_text

FORMAT = "2"
"""Part of a batch's identity: results of another format are made anew."""


@dataclass(frozen=True)
class ScoreOptions:
    """How a batch is scored. Raises ParamsError for a value that makes no sense."""

    false_discovery_rate: float | None = None
    """Overrides the detector's own."""
    strict: bool = False
    """Hold the rate for this calibration set, not only on average over such sets (conformal.conditional_p_values)."""
    control: Control = "batch"
    """What the rate is the rate of: of each batch by itself, or of all batches of a stream together (batches/flags.py).
    """
    limit: int | None = None
    """Look at the first `limit` files only."""
    fail_on: int | None = None
    """Raise OutliersFound when this many images or more are flagged; the results are written first."""
    label_model: str | None = None
    """A folder or registry address of a class-conditional density, which fills `label` and `label_probability`."""
    follow_links: bool | None = None
    """Whether to read files that symbolic links of the source lead to; overrides inbox.follow_links."""
    engine: Literal["local", "ray"] = "local"
    """Who scores the chunks: this process, or the machines of a Ray cluster (on_ray.py). The results are the same."""
    workers: int | None = None
    """Processes of the engine ray; by default one for each core of the cluster."""
    copy_to: str | None = None
    """An fsspec address that the results are copied to (copying.py)."""

    def __post_init__(self) -> None:
        rate = self.false_discovery_rate
        if rate is not None and not 0 < rate < 1:
            raise ParamsError(f"the false-discovery rate must lie between 0 and 1 (given: {rate})")
        for name, value in (("limit", self.limit), ("fail-on", self.fail_on), ("workers", self.workers)):
            if value is not None and value < 1:
                raise ParamsError(f"{name} must be at least 1 (given: {value})")
        if self.workers is not None and self.engine != "ray":
            raise ParamsError("workers are for the engine ray; add --engine ray or leave out --workers")


DEFAULTS = ScoreOptions()


def score_source(
    source: str,
    params: Params,
    root: Path,
    out: Path | None = None,
    detector: Scorer | Path | str | None = None,
    options: ScoreOptions = DEFAULTS,
) -> dict[str, Any]:
    """Score every file of `source` and write the results to `out` (by default <inbox.results>/<name of the source>).

    `source`: a folder, a glob, an image, a zip or tar archive, a Parquet file with image bytes, or any fsspec address.
    `detector`: a folder, a registry address, or a loaded detector; None takes models/detector. Returns the summary
    and, under `folder`, where the results are. Results of the same files, detector and rates are left as they are.

    Raises DataError when the source is missing or unreachable or `out` holds something else, ModelError when there is
    no such detector, OutliersFound as `options.fail_on` says.
    """
    if options.engine == "ray":
        check_ray()
    follow = params.inbox.follow_links if options.follow_links is None else options.follow_links
    skipped: Counter[str] = Counter()
    where = str(root / local_path(source)) if is_local(source) else source
    found = entries(where, follow_links=follow, skipped=skipped)
    scorer, digest = load_scorer(detector, options.label_model, params, root)
    rate = scorer.false_discovery_rate if options.false_discovery_rate is None else options.false_discovery_rate
    rule = Rule(rate, options.control, options.strict, params.inbox.alike)
    chunk = files_in_chunk(params.detector.batch_size, scorer)
    identity = {
        "format": FORMAT,
        "source": shown_source(source, root),
        "detector": digest,
        "size": for_json(scorer.size),
        "channels": scorer.channels,
        "resize": scorer.resize,
        "chunk": chunk,
        "limit": options.limit,
        "strict": options.strict,
        **({"control": "stream", "alike": rule.alike} if rule.control == "stream" else {}),
        **({"follow_links": True} if follow else {}),
    }
    folder = _target(source, params, root, out)
    stream = stream_of(source, params, root, scorer.calibration, whole=options.limit is None)
    with publishing.held(folder):
        read_verdicts(folder)  # a person's work that cannot be read stops the job before hours of scoring, not after
        if rule.control == "stream":
            check_stream(stream_file(folder.parent, scorer.calibration, rule))
        before = read_summary(folder)
        started = time.monotonic()
        same = before is not None and before["identity"] == identity
        with publishing.new_results(folder, identity | {"rate": rate}) as new:
            published = _published(folder.absolute(), chunk) if same else _none
            if options.engine == "ray":
                batch = Batch(_absolute(where), follow, options.limit, chunk, new.work.absolute(), published)
                steps = score_on_ray(batch, scorer, threshold=rate, workers=options.workers, skipped=skipped)
            else:
                limited = itertools.islice(found, options.limit)
                steps = score_in_chunks(limited, scorer, new.work, size=chunk, threshold=rate, published=published)
            chunks = list(track(steps, f"score: chunks of {chunk} files"))
            publishing.drop_chunks_from(new.work, len(chunks))
            drift_keys = partial(drift_of_batch, stream, results_folder(source, params, root).name, work=new.work)
            read = sum(files for files, _ in chunks)
            told: Any = {"results": folder.parent, "files": read, "skipped": skipped, "drift_keys": drift_keys}
            summary = write_scores(new.work, new.fresh, scorer, rule, identity, **told)
            if (line := skipped_line(skipped)) is not None:
                say(f"score: {as_text(folder.name)}: {line}")
            if before == summary and are_same(folder, new.fresh):
                new.needed, took = False, None
                say(f"score: {as_text(folder.name)}: these very files have been scored; the results stay")
            else:
                write_gallery(new.work, new.fresh, scorer, root)
                took = round(time.monotonic() - started, 3)
                note_run(
                    new.fresh,
                    seconds=took,
                    files=read,
                    scored_now=sum(scored for _, scored in chunks),
                )
                write_batch_report(new.fresh)
        past = drift_from_past(folder, digest)
        note_run(folder, **past)
    if folder.parent.resolve() == (root / params.inbox.results).resolve():
        note_batch(folder, summary, params.inbox.drift_alarm, seconds=took)
    if (alarm := alarm_in_words(summary)) is not None:
        say(f"score: drift alarm: {alarm}")
    copied = {} if options.copy_to is None else {"copy": copy_results(folder, options.copy_to)}
    flagged, fail_on = int(summary["outliers"]), options.fail_on
    if fail_on is not None and flagged >= fail_on:
        raise OutliersFound(f"{flagged} of {summary['scored']} images are outliers (--fail-on {fail_on}); see {folder}")
    return {**summary, **past, **copied, "folder": str(folder)}


def _absolute(source: str) -> str:
    """The source for processes that work in other folders."""
    return str(local_path(source).absolute()) if is_local(source) else source


def _target(source: str, params: Params, root: Path, out: Path | None) -> Path:
    """The results folder; the folder above it is made."""
    folder = behind_link(out if out is not None else results_folder(source, params, root))
    if is_local(source) and folder.resolve().is_relative_to((root / local_path(source)).resolve()):
        raise DataError(f"{as_text(str(folder))}: lies inside the source; choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _published(folder: Path, chunk: int) -> Callable[[int], pa.Table | None]:
    """The published scores chunk by chunk; None for every chunk where there are none that can be read."""
    try:
        return PublishedChunks(folder, chunk)
    except (OSError, ValueError, pa.ArrowException):
        return _none


def _none(number: int) -> None:
    return None
