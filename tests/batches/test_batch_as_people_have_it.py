"""Batches with what Macs, network drives and notebooks leave behind, with links, and with archives that are damaged."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from densitywatch.batches.inbox import find_batches
from densitywatch.batches.score_batch import ScoreOptions, score_source
from densitywatch.params import Params
from tests.detector.standin import Brightness, fill, png


def score(source: str, params: Params, root: Path, **options: bool) -> tuple[pd.DataFrame, dict[str, object]]:
    score_source(source, params, root, root / "out", Brightness(), ScoreOptions(**options))
    return pd.read_parquet(root / "out" / "scores.parquet"), json.loads((root / "out" / "summary.json").read_text())


def test_a_zip_made_on_a_mac_has_a_row_for_each_image_and_one_line_for_the_rest(
    params: Params, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(tmp_path / "mac.zip", "w") as archive:
        for i in range(32):
            archive.writestr(f"parts/{i}.png", png(10 + i))
            archive.writestr(f"__MACOSX/parts/._{i}.png", b"\x00\x05\x16\x07Mac OS X")
    rows, summary = score("mac.zip", params, tmp_path)
    assert list(rows.path) == [f"parts/{i}.png" for i in range(32)]
    assert set(rows.status) == {"scored"}
    assert summary["skipped"] == 32
    assert summary["files"] == 32
    said = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert len(said) == 1
    assert "__MACOSX/ (32)" in said[0]


def mvtec(batch: Path) -> list[str]:
    places = ["train/good/0.png", "test/good/0.png", "test/broken/0.png", "test/broken/1.png"]
    for i, place in enumerate(["ground_truth/broken/0_mask.png", "ground_truth/broken/1_mask.png", *places]):
        (batch / place).parent.mkdir(parents=True, exist_ok=True)
        (batch / place).write_bytes(png(10 + i))
    return places


def parts(batch: Path) -> list[str]:
    places = [f"{part}/{label}/0.png" for part in ("train", "val", "test") for label in ("ok", "nok")]
    for i, place in enumerate(places):
        (batch / place).parent.mkdir(parents=True, exist_ok=True)
        (batch / place).write_bytes(png(10 + i))
    return places


def parquet(batch: Path) -> list[str]:
    batch.mkdir()
    pictures = [{"bytes": png(10 + i), "path": f"{i}.png"} for i in range(5)]
    pq.write_table(pa.table({"image": pictures, "label": [0, 1, 0, 1, 0]}), batch / "test-00000-of-00001.parquet")
    return [f"test-00000-of-00001.parquet/{i}.png" for i in range(5)]


def tables(batch: Path) -> list[str]:
    fill(batch, 4)
    (batch / "labels.csv").write_text("file,label\nnormal_0000.png,ok\n")
    (batch / "metadata.jsonl").write_text('{"file_name": "normal_0000.png", "label": "ok"}\n')
    return [f"normal_{i:04d}.png" for i in range(4)]


@pytest.mark.parametrize(("layout", "skipped"), [(mvtec, 2), (parts, 0), (parquet, 0), (tables, 2)])
def test_a_dataset_in_a_layout_of_the_field_is_a_batch_without_its_masks_and_tables(
    params: Params, tmp_path: Path, layout: Callable[[Path], list[str]], skipped: int
) -> None:
    places = layout(tmp_path / "batch")
    rows, summary = score("batch", params, tmp_path)
    assert sorted(rows.path) == sorted(places)
    assert set(rows.status) == {"scored"}
    assert summary["skipped"] == skipped


def test_a_damaged_archive_or_a_dear_one_does_not_cost_the_other_files_of_a_batch(
    params: Params, tmp_path: Path
) -> None:
    batch = fill(tmp_path / "batch", 5)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for i in range(10):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = len(png(i))
            archive.addfile(info, io.BytesIO(png(i)))
    data = bytearray(packed.getvalue())
    data[data.index(b"5.png") + 2] ^= 1
    (batch / "a.tar").write_bytes(data)
    info = tarfile.TarInfo("a.png")
    info.size = 1 << 60
    (batch / "huge.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(9 << 10))
    rows, summary = score("batch", params, tmp_path)
    assert summary["scored"] == 14
    quarantined = rows[rows.status == "quarantined"].set_index("path").reason
    assert "a damaged header after 5 members" in quarantined["a.tar"]
    assert set(quarantined.index) == {"a.tar", "huge.tar", "huge.tar/a.png"}


def test_a_batch_of_links_is_read_when_that_is_set_and_stays_so(params: Params, tmp_path: Path) -> None:
    real = fill(tmp_path / "blobs", 3)
    (tmp_path / "snapshot").mkdir()
    for path in real.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    rows, _ = score("snapshot", params, tmp_path)
    assert set(rows.status) == {"quarantined"}
    assert rows.reason.str.contains("inbox.follow_links").all()
    rows, _ = score("snapshot", params, tmp_path, follow_links=True)
    assert set(rows.status) == {"scored"}
    follow = params.model_copy(update={"inbox": params.inbox.model_copy(update={"follow_links": True})})
    rows, summary = score("snapshot", follow, tmp_path)
    assert summary["scored"] == 3


def test_the_inbox_takes_no_junk_for_a_batch_and_no_change_of_junk_for_a_new_one(
    params: Params, tmp_path: Path
) -> None:
    inbox = tmp_path / params.inbox.address
    fill(inbox / "monday", 2)
    for name in ("Thumbs.db", "__MACOSX/a.png", "@eaDir/a.png", "only/.DS_Store"):
        (inbox / name).parent.mkdir(parents=True, exist_ok=True)
        (inbox / name).write_bytes(b"left behind")
    later = (inbox / "monday").stat().st_ctime + 1e6
    first = find_batches(params, tmp_path, now=later)
    assert [(batch.name, batch.state, batch.files) for batch in first] == [
        ("monday", "ready", 2),
        ("only", "waiting", 0),
    ]
    (inbox / "monday" / ".DS_Store").write_bytes(b"someone looked")
    assert find_batches(params, tmp_path, now=later)[0].listing == first[0].listing


def test_a_link_among_the_inboxs_children_is_no_batch_unless_links_are_followed(params: Params, tmp_path: Path) -> None:
    inbox = tmp_path / params.inbox.address
    inbox.mkdir(parents=True)
    (inbox / "tuesday").symlink_to(fill(tmp_path / "elsewhere", 2))
    later = tmp_path.stat().st_ctime + 1e6
    assert [batch.state for batch in find_batches(params, tmp_path, now=later)] == ["stray"]
    follow = params.model_copy(update={"inbox": params.inbox.model_copy(update={"follow_links": True})})
    assert [batch.state for batch in find_batches(follow, tmp_path, now=later)] == ["ready"]
    (inbox / "to_itself").symlink_to(inbox / "to_itself")
    states = {batch.name: batch.state for batch in find_batches(follow, tmp_path, now=later)}
    assert states == {"to_itself": "stray", "tuesday": "ready"}
