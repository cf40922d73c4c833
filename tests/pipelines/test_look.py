"""The user's own folder lies where DVC does not look; `dvc repro` and `make run` notice what changes there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from densitywatch.params import load_params
from pipelines import __main__ as entry
from pipelines import dvc_commands, dvc_graph, up_to_date


def write_image(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_params(root: Path, source: Path, images: Path) -> None:
    raw = yaml.safe_load((source / "params.yaml").read_text())
    raw["data"] |= {"source": "folder", "address": str(images)}
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for seed in range(4):
        write_image(tmp_path / "camera" / f"{seed}.png", seed)
    return tmp_path / "camera"


@pytest.fixture
def project(tmp_path: Path, images: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on a folder of images; its graph and its source are this checkout's."""
    from dvc.repo import Repo

    root = tmp_path / "project"
    root.mkdir()
    write_params(root, project_root, images)
    shutil.copy(project_root / "dvc.yaml", root)
    shutil.copytree(project_root / "src", root / "src")
    Repo.init(str(root), no_scm=True).close()
    monkeypatch.setenv("PYTHONPATH", str(project_root / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


@pytest.mark.slow
def test_dvc_alone_fetches_again_what_has_changed_and_nothing_for_new_dates_or_a_disk_that_is_away(
    project: Path, images: Path
) -> None:
    said: list[str] = []

    def repro() -> list[str]:
        said.append(dvc_commands.run_dvc(project, "repro", "fetch"))
        return re.findall(r"Running stage '(.+)'", said[-1])

    assert repro() == ["look", "fetch"]
    assert repro() == ["look"]
    assert not {"look", "fetch"} & dvc_commands.stale_stages(project), "a stage that always runs is not a stale one"
    lock = (project / "dvc.lock").read_bytes()

    os.utime(images / "0.png")
    assert repro() == ["look"]
    images.rename(images.with_name("unplugged"))
    assert repro() == ["look"]
    assert f"data.address: {images} is not there; going on with the 4 files" in said[-1]
    images.with_name("unplugged").rename(images)
    assert (project / "dvc.lock").read_bytes() == lock

    write_image(images / "4.png", 4)
    assert repro() == ["look", "fetch"]
    assert "5 images" in said[-1]
    (images / "4.png").unlink()
    repro()
    assert (project / "dvc.lock").read_bytes() == lock, "the same images are the same dataset"
    assert "cached" in said[-1], "DVC has it from before"


@pytest.fixture
def done(tmp_path: Path, images: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on a folder of images whose last run got to its end."""
    from densitywatch.data.look import look

    root = tmp_path / "done"
    root.mkdir()
    write_params(root, project_root, images)
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    (root / "mlflow.db").touch()
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(dvc_commands, "stale_stages", lambda root: set())
    look(load_params(root / "params.yaml"), root)
    up_to_date.note_up_to_date(root)
    return root


def test_an_image_that_was_added_removed_or_replaced_is_work_and_new_dates_are_none(done: Path, images: Path) -> None:
    assert up_to_date.is_up_to_date(done)
    os.utime(images / "0.png")
    assert up_to_date.is_up_to_date(done)
    write_image(images / "new.png", 9)
    assert not up_to_date.is_up_to_date(done)
    (images / "new.png").unlink()
    assert up_to_date.is_up_to_date(done)
    (images / "0.png").write_bytes((images / "1.png").read_bytes())
    assert not up_to_date.is_up_to_date(done)


def test_with_the_folder_away_a_run_says_so_in_one_line_and_that_the_rest_is_up_to_date(
    done: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(images)
    assert entry.main([]) == 0
    said = capsys.readouterr()
    assert said.err == (
        f"data.address: {images} is not there; going on with the 4 files that were there at the last look\n"
    )
    assert said.out.startswith("everything is up to date")


def test_a_batch_that_waits_is_seen_before_the_folder_is_looked_at(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    monkeypatch.setattr(up_to_date, "is_changed", lambda params, root: bool(looked.append(root)))
    assert up_to_date.is_up_to_date(done)
    assert looked == [done]
    batch = done / "data" / "inbox" / "monday"
    batch.mkdir(parents=True)
    (batch / "_SUCCESS").touch()
    assert not up_to_date.is_up_to_date(done)
    assert looked == [done]


def test_in_the_real_graph_fetch_comes_after_a_look_that_every_run_takes(project_root: Path) -> None:
    stages = {stage.name: stage for stage in dvc_graph.read_graph(project_root)}
    assert [name for name, stage in stages.items() if stage.always] == ["look"]
    assert stages["look"].after == ()
    assert stages["fetch"].after == ("look",)
    assert [name for name, stage in stages.items() if "look" in stage.after] == ["fetch", "prepare"]


def test_a_stage_that_always_runs_is_stale_when_something_else_about_it_has_changed(toy: Path) -> None:
    graph = (toy / "dvc.yaml").read_text().replace("stages:\n", "stages:\n" + LOOK)
    (toy / "dvc.yaml").write_text(graph)
    dvc_commands.run_dvc(toy, "repro", "look")
    assert "look" not in dvc_commands.stale_stages(toy)
    (toy / "seen").unlink()
    assert "look" in dvc_commands.stale_stages(toy)
    dvc_commands.run_dvc(toy, "repro", "look")
    (toy / "dvc.yaml").write_text(graph.replace("echo seen", "echo sighted"))
    assert "look" in dvc_commands.stale_stages(toy)


LOOK = """  look:
    cmd: echo seen > seen
    always_changed: true
    outs: [seen]
"""
