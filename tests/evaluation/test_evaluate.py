from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from densitywatch.errors import ModelError, ParamsError
from densitywatch.evaluation import evaluate
from densitywatch.evaluation.evaluate import evaluate_model
from densitywatch.evaluation.measures.context import Context, Figure, Result
from densitywatch.params import Params
from tests.evaluation.conftest import add_model, write_info


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_an_exact_density_gets_its_figures_and_pictures(project: Path, params: Params) -> None:
    metrics = evaluate_model("pixelcnn", params, project)
    text = (project / "metrics" / "pixelcnn.json").read_text()
    assert json.loads(text) == metrics
    assert list(json.loads(text)) == sorted(metrics), "sorted keys give small diffs"
    assert 0 < metrics["bits_per_dim"] < 20
    assert metrics["train_seconds"] == 12.3457, "six significant digits"
    assert {"parameters", "images_per_second", "score_images_per_second", "sample_images_per_second"} <= metrics.keys()
    assert "mlflow_run_id" not in metrics, "there was no run"
    folder = project / "reports" / "models" / "pixelcnn"
    figures = read(folder / "figures.json")
    expected = {"bits_per_dim.svg", "surprise.png", "samples.png", "loss.svg", "curve_gradient_norm.svg"}
    assert expected <= {figure["file"] for figure in figures}
    promised = {figure["file"] for figure in figures} | {"figures.json", "about.json"}
    assert promised <= {path.name for path in folder.iterdir()}
    assert all(figure["title"] and figure["caption"] for figure in figures)


def test_a_vae_gets_bounds_and_reconstructions(project: Path, params: Params) -> None:
    metrics = evaluate_model("vae", params, project)
    assert "bits_per_dim" not in metrics
    parts = metrics["elbo_reconstruction_bits_per_dim"] + metrics["elbo_kl_bits_per_dim"]
    assert metrics["elbo_bits_per_dim"] == pytest.approx(parts, rel=1e-4)
    assert 0 < metrics["reconstruction_mse"] < 1
    assert (project / "reports" / "models" / "vae" / "reconstructions.png").exists()


@pytest.mark.slow
def test_a_conditional_model_fills_one_row_a_label(project: Path, params: Params) -> None:
    metrics = evaluate_model("by_label", params, project)
    assert {"bits_per_dim", "bits_per_dim_given_label"} <= metrics.keys()
    figures = {figure["file"]: figure for figure in read(project / "reports" / "models" / "by_label" / "figures.json")}
    assert figures["samples.png"]["rows"][2] == "<b>Two</b>"


def test_evaluating_twice_gives_the_same_figures_and_pictures(project: Path, params: Params) -> None:
    def outcome() -> tuple[dict[str, Any], dict[str, bytes]]:
        metrics = evaluate_model("vae", params, project)
        files = {path.name: path.read_bytes() for path in (project / "reports" / "models" / "vae").iterdir()}
        return {key: value for key, value in metrics.items() if "second" not in key}, files

    assert outcome() == outcome()


def test_a_model_that_was_downloaded_alone_is_evaluated_without_its_training(project: Path, params: Params) -> None:
    for file in ("training.json", "history.json"):
        (project / "models" / "pixelcnn" / file).unlink()
    shutil.rmtree(project / "var")
    assert (
        not {"train_seconds", "images_per_second", "mlflow_run_id"} & evaluate_model("pixelcnn", params, project).keys()
    )
    assert (project / "reports" / "plots" / "pixelcnn.csv").read_text() == "step,train,validation\n"


def test_the_loss_curve_has_the_same_columns_for_every_model(project: Path, params: Params) -> None:
    evaluate_model("pixelcnn", params, project)
    assert (project / "reports" / "plots" / "pixelcnn.csv").read_text() == "step,train,validation\n2,4,\n4,3,\n"


def test_warnings_of_the_training_reach_the_report(project: Path, params: Params) -> None:
    add_model(project, "vae", warnings=["the discriminator collapsed at step 3"])
    evaluate_model("vae", params, project)
    about = read(project / "reports" / "models" / "vae" / "about.json")
    assert about["warnings"] == ["the discriminator collapsed at step 3"]


def test_a_name_that_params_does_not_have_is_refused(project: Path, params: Params) -> None:
    with pytest.raises(
        ParamsError, match=r"models\.gan: no such model in params\.yaml; it has vae, pixelcnn, by_label"
    ):
        evaluate_model("gan", params, project)


def test_a_model_of_another_image_size_is_refused(project: Path, params: Params) -> None:
    write_info(project, size=16)
    with pytest.raises(ModelError, match=r"models/vae: made for images of 8 x 8 pixels and 1 channels"):
        evaluate_model("vae", params, project)


def test_a_figure_that_is_not_a_number_leaves_the_last_results_alone(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_model("vae", params, project)
    folder, metrics = project / "reports" / "models" / "vae", project / "metrics" / "vae.json"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}, metrics.read_bytes()

    def broken(context: Context) -> Result:
        (context.out / "half.png").write_bytes(b"half")
        return Result({"fid": math.nan})

    monkeypatch.setattr(evaluate, "EVALUATORS", [broken])
    with pytest.raises(ModelError, match=r"vae: fid is nan, so nothing was written"):
        evaluate_model("vae", params, project)
    assert ({path.name: path.read_bytes() for path in folder.iterdir()}, metrics.read_bytes()) == before
    assert [path.name for path in folder.parent.iterdir()] == ["vae"], "nothing half-written is left"


def test_a_further_evaluator_is_a_function_in_the_list(
    project: Path, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def colours(context: Context) -> Result:
        (context.out / "colours.csv").write_text("label,share\nred,0.5\n")
        return Result({"colours": 3}, [Figure("colours.csv", "Colours", "Which there are.")], ["blue was not counted"])

    def absent(context: Context) -> Tensor | None:
        return None

    monkeypatch.setattr(evaluate, "EVALUATORS", [absent, colours])
    assert evaluate_model("vae", params, project)["colours"] == 3
    folder = project / "reports" / "models" / "vae"
    assert read(folder / "figures.json")[0]["title"] == "Colours"
    assert read(folder / "about.json")["notes"] == ["blue was not counted"]


def test_two_evaluators_cannot_claim_one_figure(project: Path, params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "EVALUATORS", [lambda context: Result({"fid": 1.0})] * 2)
    with pytest.raises(ValueError, match="another evaluator already gave fid"):
        evaluate_model("vae", params, project)


@pytest.mark.slow
def test_the_run_that_trained_the_model_gets_the_figures(project: Path, params: Params) -> None:
    from densitywatch.tracking import runs as tracking

    with tracking.training_run(
        "vae", params, project, dataset_name="digits", dataset_digest="0" * 64, stage="train@vae", resume_run_id=None
    ) as run:
        pass
    add_model(project, "vae", mlflow_run_id=run.run_id)
    metrics = evaluate_model("vae", params, project)
    assert metrics["mlflow_run_id"] == run.run_id
    client = tracking.open_client(tracking.tracking_uri(params, project))
    logged = client.get_run(run.run_id).data.metrics
    assert logged["elbo_bits_per_dim"] == metrics["elbo_bits_per_dim"]
    assert "evaluation/samples.png" in {file.path for file in client.list_artifacts(run.run_id, "evaluation")}
