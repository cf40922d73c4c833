"""The doors for what is read back: models, checkpoints, the detector, results, the dataset, and a fetched source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.numpy import save as save_arrays

from densitywatch.batches.batch_report import write_batch_report
from densitywatch.batches.batch_table import TABLE
from densitywatch.batches.checks import validate_batch
from densitywatch.batches.drift_state import batches_since
from densitywatch.batches.gallery import contact_sheet
from densitywatch.batches.over_time import write_page
from densitywatch.batches.results_folder import read_run, read_summary
from densitywatch.batches.review.page import ReviewImages
from densitywatch.batches.review.random_draw import draw
from densitywatch.batches.score_batch import score_source
from densitywatch.batches.verdicts import read_verdicts
from densitywatch.data.accepted import with_accepted
from densitywatch.data.dataset import open_split, read_info
from densitywatch.data.image_table import on_disk
from densitywatch.data.prepare import prepare
from densitywatch.data.raw import Raw, open_raw
from densitywatch.data.validation.validate import read_manifest
from densitywatch.detector import detector
from densitywatch.detector.calibrate import calibrate
from densitywatch.detector.stream_drift import HIGH, LOW, MEASURES
from densitywatch.errors import DataError
from densitywatch.files import read_json
from densitywatch.models.storage import WEIGHTS, load_model_folder
from densitywatch.params import Params, load_params
from densitywatch.registry.version_files import CALIBRATION, load_calibration
from densitywatch.training.checkpoint import STATE, Progress, load_state, save_state
from tests.detector.standin import Brightness, png
from tests.faults.hostile.attempt import Door, Enter
from tests.faults.hostile.doors_of_files import ROOT
from tests.faults.hostile.doors_of_texts import scored
from tests.faults.hostile.mutations import as_bytes, changed, files, json_text, safetensors, text
from tests.registry.registry_project import images, tiny_params, write_data, write_model


def _model(kind: str) -> Callable[[Path], Enter]:
    def opened(folder: Path) -> Enter:
        target = folder / "models" / "given"
        target.mkdir(parents=True)

        def enter(case: bytes) -> None:
            (target / WEIGHTS).write_bytes(case)
            model: Any = load_model_folder(target)
            x = torch.from_numpy(images(2, 0))
            with torch.inference_mode():
                (model.log_prob if kind == "pixelcnn" else model.elbo)(x)

        return enter

    return opened


def _of_models(kind: str) -> st.SearchStrategy[bytes]:
    def found() -> st.SearchStrategy[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            whole = (write_model(Path(made), kind, kind=kind) / WEIGHTS).read_bytes()
        return st.one_of(safetensors([whole]), safetensors([whole]), files([whole]))

    return st.deferred(found)


def _checkpoint(folder: Path) -> Enter:
    expected = {"w": torch.zeros(3, 4), "b": torch.zeros(4)}

    def enter(case: bytes) -> None:
        (folder / STATE).write_bytes(case)
        found = load_state(folder, "identity", expected, {})
        if found is None:
            raise DataError("trained anew, as without a checkpoint")
        tensors, progress = found
        assert tensors["w"].shape == (3, 4)
        assert isinstance(progress.step, int)

    return enter


def _checkpoints() -> st.SearchStrategy[bytes]:
    def found() -> st.SearchStrategy[bytes]:
        import tempfile
        from dataclasses import fields

        with tempfile.TemporaryDirectory() as made:
            needed = {field.name: 1 for field in fields(Progress) if field.name == "step"}
            tensors = {"w": torch.ones(3, 4), "b": torch.zeros(4)}
            save_state(Path(made), "identity", tensors, Progress(**needed))
            whole = (Path(made) / STATE).read_bytes()
        return st.one_of(safetensors([whole]), safetensors([whole]), files([whole]))

    return st.deferred(found)


def _sorted_scores(folder: Path) -> Enter:
    def enter(case: bytes) -> None:
        (folder / CALIBRATION).write_bytes(case)
        nats = load_calibration(folder / CALIBRATION)
        assert np.isfinite(nats).all()

    return enter


def _scores_of_calibration() -> st.SearchStrategy[bytes]:
    whole = save_arrays({"nll": np.sort(np.random.default_rng(0).normal(size=99))})
    return st.one_of(safetensors([whole]), files([whole]))


def _project(folder: Path) -> Params:
    write_data(folder)
    write_model(folder, "pixelcnn")
    params = tiny_params()
    calibrate(params, folder)
    return params


_kept: dict[str, bytes] = {}


def _detector_files() -> dict[str, bytes]:
    """detector.json and detector.safetensors of a small project."""
    if not _kept:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            _project(Path(made))
            for name in (detector.FACTS, detector.ARRAYS):
                _kept[name] = (Path(made) / "models" / "detector" / name).read_bytes()
    return _kept


def _detector(folder: Path) -> Enter:
    _project(folder)
    target = folder / "models" / "detector"

    def enter(case: tuple[bytes, bytes]) -> None:
        (target / detector.FACTS).write_bytes(case[0])
        (target / detector.ARRAYS).write_bytes(case[1])
        loaded = detector.load(target)
        x = np.zeros((2, loaded.channels, *detector.height_width(loaded.size)), np.uint8)
        found = loaded.score(x)
        assert len(found.p_value) == 2
        [loaded.explain(found, i) for i in range(2)]

    return enter


def _detectors() -> st.SearchStrategy[tuple[bytes, bytes]]:
    def found() -> st.SearchStrategy[tuple[bytes, bytes]]:
        whole = _detector_files()
        facts, arrays = whole[detector.FACTS], whole[detector.ARRAYS]
        lies = json_text([json.loads(facts)]).map(lambda said: said.encode("utf-8", "surrogatepass"))
        return st.one_of(
            st.tuples(lies, st.just(arrays)),
            st.tuples(st.just(facts), st.one_of(safetensors([arrays]), changed([arrays]))),
        )

    return st.deferred(found)


RESULTS = ("summary.json", "scores.parquet", "gallery.parquet", "drawn.parquet", "verdicts.json", "run.json")


def _results(folder: Path) -> Enter:
    """A results folder in which one file is not what was written: everybody who reads it."""
    params = load_params(ROOT / "params.yaml")
    results = scored(folder)
    _judge(folder, results)
    kept = folder / "kept"
    shutil.copytree(results, kept)

    def enter(case: tuple[str, bytes]) -> None:
        for name in RESULTS:
            shutil.copyfile(kept / name, results / name)
        name, data = case
        (results / name).write_bytes(data)
        refused: list[DataError] = []

        def ask(question: Callable[[], object]) -> None:
            try:
                question()
            except DataError as error:
                refused.append(error)

        ask(lambda: read_summary(results))
        ask(lambda: read_run(results))
        ask(lambda: read_verdicts(results))
        ask(lambda: write_batch_report(results))
        ask(lambda: contact_sheet(results))

        def review() -> None:
            shown = ReviewImages(results)
            for number in range(len(shown.keys)):
                shown.item(number)
            shown.state(read_verdicts(results), trouble="")

        ask(review)
        summary = score_source("batch", params, folder, results, Brightness())
        assert summary["files"] == 15
        if refused:
            raise refused[0]

    return enter


def _judge(folder: Path, results: Path) -> None:
    from densitywatch.batches.review.judging import give_verdicts

    draw(results, 6, folder, 1)
    (key, *_) = ReviewImages(results).keys
    give_verdicts(results, {key: "outlier"})


def _of_results() -> st.SearchStrategy[tuple[str, bytes]]:
    def found() -> st.SearchStrategy[tuple[str, bytes]]:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            results = scored(Path(made))
            _judge(Path(made), results)
            whole = {name: (results / name).read_bytes() for name in RESULTS}
        one = []
        for name, data in whole.items():
            if name.endswith(".json"):
                lies = json_text([json.loads(data)]).map(lambda said: said.encode("utf-8", "surrogatepass"))
                one.append(st.tuples(st.just(name), st.one_of(lies, lies, files([data]))))
            else:
                one.append(st.tuples(st.just(name), files([data])))
        return st.one_of(*one)

    return st.deferred(found)


def _batch_checks(folder: Path) -> Enter:
    params = load_params(ROOT / "params.yaml")
    results = scored(folder)

    def enter(case: bytes) -> None:
        (results / "scores.parquet").write_bytes(case)
        validate_batch(results, 15, params)

    return enter


def _score_tables() -> st.SearchStrategy[bytes]:
    def found() -> st.SearchStrategy[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            return files([(scored(Path(made)) / "scores.parquet").read_bytes()])

    return st.deferred(found)


ROW = {
    "folder": "a",
    "batch": "inbox/a",
    "time": 1.7e9,
    "files": 10,
    "scored": 9,
    "quarantined": 1,
    "outliers": 2,
    "drift_p_value": 0.4,
    "drift_evidence": 1.5,
    "drift_alarm": True,
    "drift_alarm_batch": "b",
    "seconds": 2.0,
}
KEPT = {
    "name": "a",
    "content": "c" * 64,
    "images": 10,
    "beyond": [1] * (len(HIGH) + len(LOW)),
    "measures": [0.5] * len(MEASURES),
    "start": 0,
    "evidence": 0.5,
    "alarm": None,
    "since": None,
    "moved": None,
}


def _over_time(folder: Path) -> Enter:
    """The table of batches and the state of the stream, which the page over time is made of."""

    def enter(case: tuple[bytes, bytes]) -> None:
        (folder / TABLE).write_bytes(case[0])
        (folder / "drift-abc.json").write_bytes(case[1])
        write_page(folder, 0.01)
        page = (folder / "index.html").read_text(encoding="utf-8")
        assert page.count("<script>") <= 1
        batches_since(folder, "abc", "a")

    return enter


def _tables_over_time() -> st.SearchStrategy[tuple[bytes, bytes]]:
    rows = [json.dumps({**ROW, "folder": name}) + "\n" + json.dumps(ROW) + "\n" for name in ("b", "c")]
    lies = json_text([ROW]).map(lambda said: rows[0].encode() + said.encode("utf-8", "surrogatepass"))
    state = json_text([{"format": 1, "detector": "d", "batches": [KEPT, KEPT]}])
    states = state.map(lambda said: said.encode("utf-8", "surrogatepass"))
    return st.tuples(st.one_of(lies, as_bytes(text(rows))), states)


def _small(folder: Path) -> Params:
    params = load_params(ROOT / "params.yaml")
    for number in range(40):
        for label in ("a", "b"):
            (folder / "photos" / label).mkdir(parents=True, exist_ok=True)
            (folder / "photos" / label / f"{number}.png").write_bytes(png(20 + number, size=(16, 16), seed=number))
    data = params.data.model_dump() | {"source": "folder", "address": "photos", "size": 16, "channels": 1}
    return params.model_copy(update={"data": type(params.data).model_validate(data)})


def _fetched(folder: Path) -> Params:
    from densitywatch.data.folder import fetch_folder

    params = _small(folder)
    (folder / "data" / "raw").mkdir(parents=True)
    fetch_folder(["photos"], folder / "data" / "raw", folder)
    return params


RAW = ("images.parquet", "entries.parquet", "rejected.json")


def _raw(folder: Path) -> Enter:
    """What `fetch` left, changed since; `prepare` reads it."""
    params = _fetched(folder)
    raw, kept = folder / "data" / "raw", folder / "kept"
    shutil.copytree(raw, kept)

    def enter(case: tuple[str, bytes]) -> None:
        for name in RAW:
            shutil.copyfile(kept / name, raw / name)
        (raw / case[0]).write_bytes(case[1])
        found = open_raw(params.data, raw)
        list(found.images())
        list(found.read(range(found.count)))

    return enter


def _raw_files() -> st.SearchStrategy[tuple[str, bytes]]:
    def found() -> st.SearchStrategy[tuple[str, bytes]]:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            _fetched(Path(made))
            whole = [(name, (Path(made) / "data" / "raw" / name).read_bytes()) for name in RAW]
        return st.one_of(*(st.tuples(st.just(name), files([data])) for name, data in whole))

    return st.deferred(found)


PREPARED = ("dataset.json", "train.npy", "train_labels.npy", "manifest.parquet")


def _prepared(folder: Path) -> Enter:
    data = folder / "data" / "prepared"
    params = _fetched(folder)
    prepare(params, folder)
    kept = folder / "kept"
    shutil.copytree(data, kept)

    def enter(case: tuple[str, bytes]) -> None:
        for name in PREPARED:
            shutil.copyfile(kept / name, data / name)
        (data / case[0]).write_bytes(case[1])
        info = read_info(data)
        split = open_split(data, "train")
        assert split.images.dtype == np.uint8  # type: ignore[attr-defined]
        split.images[: min(3, len(split))].sum()
        with on_disk(None) as table:
            read_manifest(data, table)
        assert info.digest is not None

    return enter


def _prepared_files() -> st.SearchStrategy[tuple[str, bytes]]:
    def found() -> st.SearchStrategy[tuple[str, bytes]]:
        import tempfile

        with tempfile.TemporaryDirectory() as made:
            prepare(_fetched(Path(made)), Path(made))
            whole = [(name, (Path(made) / "data" / "prepared" / name).read_bytes()) for name in PREPARED]
        one = [st.tuples(st.just(name), files([data])) for name, data in whole]
        lies = json_text([json.loads(whole[0][1])]).map(lambda said: said.encode("utf-8", "surrogatepass"))
        return st.one_of(st.tuples(st.just("dataset.json"), lies), *one)

    return st.deferred(found)


def _accepted(folder: Path) -> Enter:
    params = load_params(ROOT / "params.yaml")
    target = folder / "data" / "accepted"
    target.mkdir(parents=True)

    def enter(case: bytes) -> None:
        (target / "a.parquet").write_bytes(case)
        raw = with_accepted(Raw(lambda: iter(()), 0, (), lambda _: iter(())), params.data, folder)
        list(raw.images())
        list(raw.read(range(raw.count)))

    return enter


def _accepted_files() -> st.SearchStrategy[bytes]:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    from densitywatch.data.accepted import schema

    rows = [
        {"path": f"{i}.png", "sha256": f"{i}", "label": None, "fair": i > 1, "drift": 1, "alarm": "b", "bytes": png(i)}
        for i in range(5)
    ]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), file)
    return files([file.getvalue()])


def _json(folder: Path) -> Enter:
    def enter(case: bytes) -> None:
        (folder / "any.json").write_bytes(case)
        json.dumps(read_json(folder / "any.json"), ensure_ascii=False, allow_nan=False).encode()

    return enter


def doors() -> list[Door]:
    any_json = json_text([ROW, KEPT]).map(lambda said: said.encode("utf-8", "surrogatepass"))
    return [
        Door("model file: pixelcnn", _of_models("pixelcnn"), _model("pixelcnn"), quick=15),
        Door("model file: vae", _of_models("vae"), _model("vae"), share=200, quick=10),
        Door("checkpoint of a training", _checkpoints(), _checkpoint, quick=20),
        Door("scores of calibration images", st.deferred(_scores_of_calibration), _sorted_scores, quick=20),
        Door("detector", _detectors(), _detector, share=250, quick=8),
        Door("results read back", _of_results(), _results, share=200, quick=3, seconds=60),
        Door("results that are checked", _score_tables(), _batch_checks, share=60, quick=2, seconds=60),
        Door("table of batches, and drift", _tables_over_time(), _over_time, share=200, quick=10),
        Door("JSON of this program", any_json, _json, quick=40),
        Door("fetched source", _raw_files(), _raw, share=150, quick=4),
        Door("prepared dataset", _prepared_files(), _prepared, share=250, quick=15),
        Door("accepted images", st.deferred(_accepted_files), _accepted, share=200, quick=8),
    ]
