"""What calibrate and the benchmark depend on follows from params; with DVC itself, in a project of bars."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import dvc_commands, dvc_graph
from tests.marks import marks
from tests.small_project import SIZE, make_project

# dvc 3.67 builds its tree of outputs with a property that pygtrie 2.5 is about to drop; the lock file keeps the pair
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


def write_params(root: Path, source: Path, models: list[str], **detector: Any) -> None:
    raw = yaml.safe_load((source / "params.yaml").read_text())
    raw["models"] = {name: raw["models"][name] for name in models}
    raw["data"] |= {"size": SIZE}
    raw["device"] |= {"accelerator": "cpu", "threads": 1, "slots": 1}
    raw["detector"] |= {"small_network_steps": 2, "panel_images": 20, "slow_images": 4, "folds": 0} | detector
    (root / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def waits_for(root: Path, name: str) -> set[str]:
    """Every stage before `name`, near and far."""
    after = {stage.name: stage.after for stage in dvc_graph.read_graph(root)}
    found, waiting = set[str](), [name]
    while waiting:
        new = set(after[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


@pytest.fixture
@marks("slow")
def project(tmp_path: Path, project_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with prepared data and models on disk; its graph and its source are this checkout's."""
    from dvc.repo import Repo

    root = tmp_path / "project"
    root.mkdir()
    make_project(root, project_root / "params.yaml")
    for name in ("dvc.yaml", "src"):
        copy = shutil.copytree if (project_root / name).is_dir() else shutil.copy
        copy(project_root / name, root / name)
    Repo.init(str(root), no_scm=True).close()
    monkeypatch.setenv("PYTHONPATH", str(project_root / "src"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


@pytest.mark.parametrize(
    ("models", "reads", "rivals_read", "detector_waits", "benchmark_waits"),
    [
        (["pixelcnn", "gan"], ["pixelcnn"], [], {"pixelcnn"}, {"pixelcnn"}),
        (["pixelcnn", "vae", "gan"], ["pixelcnn", "vae"], [], {"pixelcnn", "vae"}, {"pixelcnn", "vae"}),
        (["pixelcnn", "vae", "gan"], ["pixelcnn"], ["vae"], {"pixelcnn"}, {"pixelcnn", "vae"}),
    ],
)
def test_the_detector_and_its_benchmark_wait_for_the_models_that_params_name(
    project: Path,
    project_root: Path,
    models: list[str],
    reads: list[str],
    rivals_read: list[str],
    detector_waits: set[str],
    benchmark_waits: set[str],
) -> None:
    write_params(project, project_root, models, reads=reads, rivals_read=rivals_read)
    for stage, expected in (("calibrate", detector_waits), ("benchmark", benchmark_waits)):
        before = waits_for(project, stage)
        assert {name.partition("@")[2] for name in before if name.startswith("train@")} == expected
    uses = {stage.name: stage.uses_device for stage in dvc_graph.read_graph(project)}
    assert not uses["detector_reads@pixelcnn"], "a copy waits for no slot"
    assert uses["calibrate"]


def run(root: Path, *stages: str) -> list[str]:
    return [dvc_commands.run_stage(stage, root, lambda line: None) for stage in stages]


def test_without_a_vae_the_detector_is_calibrated_and_measured_and_nothing_reruns_for_equal_weights_or_a_move(
    project: Path, project_root: Path
) -> None:
    shutil.rmtree(project / "models" / "vae")
    write_params(project, project_root, ["pixelcnn"], reads=["pixelcnn"], rivals_read=[])
    chain = ("detector_reads@pixelcnn", "calibrate", "benchmark")
    assert run(project, *chain) == ["ran"] * 3
    rows = (project / "reports" / "outliers" / "auroc.csv").read_text()
    assert "vae_kl" not in rows
    assert "pixelcnn_nll" in rows
    caption = (project / "reports" / "outliers" / "figures.json").read_text()
    assert "vae_kl: reads the model 'vae', which detector.rivals_read does not name" in caption

    weights = project / "models" / "pixelcnn" / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    assert run(project, *chain) == ["skipped"] * 3

    moved = project.rename(project.with_name("elsewhere"))
    assert not set(chain) & dvc_commands.stale_stages(moved)
    assert run(moved, *chain) == ["skipped"] * 3

    weights = moved / "models" / "pixelcnn" / "model.safetensors"
    weights.write_bytes(content[:-4] + b"\0\0\0\0")
    assert run(moved, *chain[:2]) == ["ran"] * 2


@pytest.mark.parametrize(
    ("models", "reads", "said"),
    [
        (["pixelcnn"], ["pixelcnn"], "detector.members: 'vae_kl' reads the model 'vae', which `models` of params"),
        (["pixelcnn", "vae"], ["pixelcnn"], "detector.reads: 'vae_kl' reads the model 'vae', which is not named there"),
    ],
)
def test_a_member_without_its_model_is_one_sentence(
    project: Path, project_root: Path, models: list[str], reads: list[str], said: str
) -> None:
    write_params(project, project_root, models, members=["composition", "vae_kl"], reads=reads, rivals_read=[])
    run(project, "detector_reads@pixelcnn")
    with pytest.raises(dvc_commands.StageFailed, match=f"^stage calibrate: {said}"):
        run(project, "calibrate")
