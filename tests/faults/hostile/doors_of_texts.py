"""The doors for texts: tables of labels and verdicts, params and profiles, and what a Prefect server answers to CI."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from hypothesis import strategies as st

from densitywatch.batches.results_folder import batch_name, results_folder
from densitywatch.batches.review.verdict_table import read_csv, write_csv
from densitywatch.batches.score_batch import score_source
from densitywatch.data.inputs.label_table import Labels, read_label_table
from densitywatch.data.inputs.parts_and_labels import arrange
from densitywatch.models.storage import check_settings
from densitywatch.params import load_params
from densitywatch.profiles import apply_profile
from pipelines import ask_retrain, dvc_files, retrain_result
from tests.detector.standin import Brightness, fill
from tests.faults.hostile.attempt import Door, Enter
from tests.faults.hostile.mutations import as_bytes, json_text, names, text

ROOT = Path(__file__).parents[3]
LABELS = [
    "file,label\na/0.png,cat\na/1.png,dog\na/2.png,cat\na/3.png,dog\n",
    "image;class\r\n0.png;yes\r\n1.png;no\r\n2;yes\r\n3;no\r\n",
    'file_name\tlabel\n"0.png"\tx\n"1.png"\tx\n2.png\ty\n3.png\ty\n',
]
JSON_LINES = ["".join(f'{{"file_name": "{number}.png", "label": {number % 2}}}\n' for number in range(4))]


def _labels(name: str) -> Callable[[Path], Enter]:
    def opened(_: Path) -> Enter:
        def enter(case: bytes) -> None:
            rows = read_label_table(case, name)
            labels = Labels()
            labels.add(name, rows)
            places = [f"a/{number}.png" for number in range(4)]
            found = arrange(places, [labels.of(place) for place in places])
            # as `fetch` writes them
            json.dumps([found.labels, list(found.left_out.values()), found.remarks], ensure_ascii=False).encode()
            "".join(labels.unknown()).encode("utf-8", "surrogatepass")

        return enter

    return opened


def scored(folder: Path) -> Path:
    """Results with three flagged images."""
    fill(folder / "batch", 12, bright=3)
    score_source("batch", load_params(ROOT / "params.yaml"), folder, folder / "results", Brightness())
    return folder / "results"


def _verdicts(folder: Path) -> Enter:
    results, table = scored(folder), folder / "verdicts.csv"
    before = (results / "summary.json").read_bytes()

    def enter(case: bytes) -> None:
        (results / "verdicts.json").unlink(missing_ok=True)
        table.write_bytes(case)
        count = read_csv(results, table)
        assert (results / "summary.json").read_bytes() == before
        assert 0 <= count <= 3

    return enter


def _verdict_tables() -> list[str]:
    """As `review --to-csv` writes it; the digests are those of the pictures that `scored` makes."""
    import hashlib
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        results = scored(Path(made))
        write_csv(results, Path(made) / "table.csv")
        lines = (Path(made) / "table.csv").read_text(encoding="utf-8").splitlines()
        assert len(lines) == 4, hashlib.sha256(b"").hexdigest()
    filled = [lines[0], *(line.replace(",", ",outlier", 1) for line in lines[1:])]
    return ["\n".join(filled) + "\n", "\r\n".join(filled).replace(",", ";"), "sep=;\r\n" + "\r\n".join(lines)]


def _params(folder: Path) -> Enter:
    path = folder / "params.yaml"

    def enter(case: bytes) -> None:
        path.write_bytes(case)
        params = load_params(path)
        check_settings(params, path)

    return enter


def _profile(folder: Path) -> Enter:
    (folder / "profiles").mkdir()
    target, profile = folder / "params.yaml", folder / "profiles" / "own.yaml"
    whole = (ROOT / "params.yaml").read_bytes()

    def enter(case: bytes) -> None:
        target.write_bytes(whole)
        profile.write_bytes(case)
        try:
            apply_profile("own", folder)
        finally:
            load_params(target)  # whatever the profile says, params.yaml can still be used
            assert sorted(path.name for path in folder.iterdir() if path.is_file()) == ["params.yaml"]

    return enter


def _yaml() -> list[str]:
    short = (ROOT / "params.yaml").read_text(encoding="utf-8")
    return [short]


def _profiles() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ROOT / "profiles").glob("*.yaml"))]


def _batch_names(folder: Path) -> Enter:
    params = load_params(ROOT / "params.yaml")
    top = (folder / params.inbox.results).resolve()

    def enter(case: str) -> None:
        name = batch_name(case)
        assert name
        assert "/" not in name
        found = results_folder(case, params, folder)
        assert found.parent.resolve() == top, found

    return enter


RESULT: dict[str, Any] = {
    "version": 1,
    "commit": "a" * 40,
    "files": {"dvc.lock": "schema: '2.0'\n", "metrics/vae.json": "{}"},
    "removed": ["metrics/old.json"],
    "seconds": 61.5,
    "verdicts": [{"model": "vae", "outcome": "promoted", "gate": "better by 0.1"}],
    "metrics": "| Path | Metric |\n|---|---|\n| a | b |\n",
    "curves": {"vae": {"train": [3.0, 2.0], "validation": [3.5], "steps": [1, 200]}},
}


def _result(_: Path) -> Enter:
    def enter(case: str) -> None:
        result = retrain_result.check(json.loads(case) if _is_json(case) else case)
        page = retrain_result.page(result)
        page.encode()
        for line in [retrain_result.title(result), *retrain_result.verdict_lines(result)]:
            assert "\n" not in line
        retrain_result.figure_lines(result)
        for name in retrain_result.changed(result):
            assert not Path(name).is_absolute()
            assert ".." not in Path(name).parts

    return enter


def _is_json(case: str) -> bool:
    try:
        json.loads(case)
    except (ValueError, RecursionError):
        return False
    return True


ANSWERS: list[Any] = [
    {"id": "1", "parameter_openapi_schema": {"properties": {"ref": {}}}},
    {"id": "2"},
    {"state": {"name": "Completed", "type": "COMPLETED", "message": None}},
    [{"data": json.dumps(RESULT)}],
]


class _Opener:
    """A Prefect server that answers anything."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, bytes]] = []

    def open(self, request: Any, timeout: float) -> io.BytesIO:
        code, body = self.answers.pop(0) if self.answers else (200, b"null")
        if code >= 400:
            raise HTTPError(request.full_url, code, "no", None, io.BytesIO(body))  # type: ignore[arg-type]
        return io.BytesIO(body)


def _asked(_: Path) -> Enter:
    server, opener = ask_retrain.Server("http://127.0.0.1:1/api", "user:password"), _Opener()
    server._opener = opener  # type: ignore[assignment]

    def enter(case: list[tuple[int, bytes]]) -> None:
        opener.answers = list(case)
        run = ask_retrain.ask(server, "main")
        # a state that has not ended, and no time left: asked once
        state = ask_retrain.wait(server, run, 0.0)
        ask_retrain.result_of(server, run)
        ask_retrain._reason(state).encode()

    return enter


def _answers() -> st.SearchStrategy[list[tuple[int, bytes]]]:
    one = [st.one_of(st.just(json.dumps(said)), json_text([said])) for said in ANSWERS]
    body = [said.map(lambda text: text.encode("utf-8", "surrogatepass")) for said in one]
    codes = st.sampled_from((200, 200, 200, 200, 200, 401, 404, 422, 500))
    return st.tuples(*(st.tuples(codes, data) for data in body)).map(list)


def _dvc_files(folder: Path) -> Enter:
    """What a killed DVC may leave behind, which the next run reads."""
    inner = folder / ".dvc" / "tmp"
    inner.mkdir(parents=True)
    lock, held = folder / "dvc.lock", inner / "rwlock"

    def enter(case: tuple[bytes, str]) -> None:
        shutil.rmtree(folder / "var", ignore_errors=True)
        lock.write_bytes(case[0])
        held.write_text(case[1], encoding="utf-8", errors="surrogatepass")
        dvc_files.settle(folder)

    return enter


LOCK = "schema: '2.0'\nstages:\n  fetch:\n    cmd: densitywatch fetch\n    outs:\n    - path: data/raw\n      md5: 0\n"
HELD = {"read": {"/a": [{"pid": 1, "cmd": "dvc repro"}]}, "write": {"/b": {"pid": 2, "cmd": "dvc"}}}


def doors() -> list[Door]:
    return [
        Door("table of labels: CSV", as_bytes(text(LABELS)), _labels("labels.csv"), quick=60),
        Door("table of labels: JSON lines", as_bytes(text(JSON_LINES)), _labels("labels.jsonl"), quick=60),
        Door(
            "table of verdicts", as_bytes(st.deferred(lambda: text(_verdict_tables()))), _verdicts, share=250, quick=6
        ),
        Door("params.yaml", as_bytes(text(_yaml())), _params, share=250, quick=4),
        Door("a profile", as_bytes(text(_profiles())), _profile, share=150, quick=3),
        Door("name of a batch", names, _batch_names, quick=40),
        Door("a run's result in CI", json_text([RESULT]), _result, quick=60),
        Door("a Prefect server's answers", _answers(), _asked, quick=40),
        Door("what a killed DVC left", st.tuples(as_bytes(text([LOCK])), json_text([HELD])), _dvc_files, quick=20),
    ]
