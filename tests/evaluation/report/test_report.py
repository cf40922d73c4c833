from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from densitywatch.errors import DataError
from densitywatch.evaluation.report.report import write_report
from densitywatch.params import Params, load_params
from tests.evaluation.conftest import MODELS, write_info, write_params

EXACT = {"bits_per_dim": 2.97, "bits_per_dim_stderr": 0.004, "parameters": 12345, "train_seconds": 250.0}
BOUND = {"elbo_bits_per_dim": 3.6, "iwae_bits_per_dim": 3.4, "reconstruction_mse": 0.02, "fid": 12.5, "fid_floor": 1.25}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def evaluated(root: Path, name: str, metrics: dict[str, Any], figures: list[dict[str, Any]], **about: Any) -> Path:
    """What evaluate_model leaves behind; every png that `figures` name is made."""
    folder = root / "reports" / "models" / name
    write(root / "metrics" / f"{name}.json", metrics)
    write(folder / "figures.json", figures)
    write(folder / "about.json", about)
    for figure in figures:
        if figure["file"].endswith(".png"):
            Image.new("L", (16, 16), 90).save(folder / figure["file"])
    return folder


@pytest.fixture
def measured(project: Path) -> Path:
    samples = {"file": "samples.png", "title": "Samples", "caption": "Four of them."}
    evaluated(project, "pixelcnn", EXACT, [samples], settings={"channels": 4, "dilations": [1, 2]})
    evaluated(
        project,
        "vae",
        BOUND,
        [samples | {"rows": ["a", "b"]}],
        warnings=["it <i>stalled</i>"],
        notes=["the FID was left out"],
    )
    return project


def page_of(root: Path) -> str:
    return write_report(load_params(root / "params.yaml"), root).read_text()


def figures_of(page: str, name: str) -> dict[str, str]:
    """A model's figures in the comparison table by the row's title, without markup."""
    table = page[page.index("<table>") : page.index("</table>")]
    models = re.findall(r'<a href="#model-(\w+)">', table)
    lines = re.findall(r'<th scope="row">([^<]*)(.*?)</tr>', table, re.S)
    column = models.index(name)
    cells = {title: re.findall(r"<td.*?</td>", line)[column] for title, line in lines}
    return {title: " ".join(re.sub("<[^>]*>", " ", cell).split()) for title, cell in cells.items()}


def test_exact_figures_and_bounds_stand_in_one_row_and_bounds_are_named(measured: Path) -> None:
    page = page_of(measured)
    assert figures_of(page, "pixelcnn")["bits/dim"] == "2.970 ± 0.004"
    assert figures_of(page, "vae")["bits/dim"] == "≤ 3.400 importance bound"


def test_what_a_model_does_not_offer_is_an_en_dash_and_an_empty_row_is_left_out(measured: Path) -> None:
    page = page_of(measured)
    assert figures_of(page, "pixelcnn") == {
        "bits/dim": "2.970 ± 0.004",
        "Reconstruction MSE": "–",
        "FID (our features)": "–",
        "Parameters": "12,345",
        "Training time": "4 min 10 s",
    }
    assert list(figures_of(page, "vae").values()) == ["≤ 3.400 importance bound", "0.0200", "12.5", "–", "–"]
    assert "KID" not in page


def test_the_best_of_a_row_is_marked_only_when_there_is_another(measured: Path) -> None:
    assert re.findall(r'<td class="best">([^<]*)', page_of(measured)) == ["2.970"]


def test_a_model_that_was_not_evaluated_yet_says_so(measured: Path) -> None:
    page = page_of(measured)
    assert "dvc repro evaluate@by_label" in page
    assert set(figures_of(page, "by_label").values()) == {"–"}


def test_a_model_added_to_params_is_on_the_page(measured: Path) -> None:
    write_params(measured, MODELS | {"eighth": MODELS["pixelcnn"]})
    evaluated(measured, "eighth", {"bits_per_dim": 2.5}, [{"file": "x.png", "title": "Its own", "caption": "Picture."}])
    page = page_of(measured)
    assert figures_of(page, "eighth")["bits/dim"] == "2.500"
    assert "Its own" in page


def test_the_page_needs_nothing_from_outside(measured: Path) -> None:
    page = page_of(measured)
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert not re.search(r"<(script|link|iframe|object)|@import|url\(", page)
    assert page.count('src="data:image/png;base64,') == 3  # two grids side by side, and the one with named rows again


def test_names_from_the_data_are_text_and_never_markup(measured: Path) -> None:
    write_info(measured, name="<script>alert(1)</script>", class_names=["<img src=x>", "b"])
    folder = evaluated(
        measured,
        "by_label",
        {"note": "<u>x</u>"},
        [
            {"file": "a.png", "title": "<b>bold</b>", "caption": '"><script>', "rows": ["<hr>"]},
            {"file": "t.csv", "title": "Table", "caption": ""},
        ],
    )
    (folder / "t.csv").write_text("<td>,b\n<em>,0.123456\n")
    write(measured / "metrics" / "outliers.json", {"auroc": {"<p>": 0.5}, "<q>": "<s>"})
    page = page_of(measured)
    for markup in ("<script", "<img src=x", "<u>", "<b>bold", "<hr>", "<td>,", "<em>", "<p>:", "<q>", "<s>", "<i>"):
        assert markup not in page, markup
    assert "&lt;script&gt;alert(1)" in page
    assert "<td>0.1235</td>" in page


def test_warnings_and_what_was_left_out_are_said(measured: Path) -> None:
    page = page_of(measured)
    assert "it &lt;i&gt;stalled&lt;/i&gt;" in page
    assert '<p class="small">The FID was left out.</p>' in page


def test_the_feature_network_says_what_its_space_is_worth(measured: Path) -> None:
    assert "feature network" not in page_of(measured)
    write(
        measured / "metrics" / "classifier.json",
        {"task": "labels", "accuracy": 0.9155, "raw_pixel_probe_100": 0.7, "raw_pixel_probe_51000": 0.844},
    )
    page = " ".join(page_of(measured).split())
    assert "it finds the right labels of 91.55 % of the test images" in page
    assert "raw pixels, with 51,000 labels, is right for 84.4 %" in page
    assert "As many training images, measured in the same way, have an FID of 1.25: what a perfect sampler gets" in page


def test_the_outlier_benchmark_is_shown_when_it_is_there(measured: Path) -> None:
    assert 'id="outliers"' not in page_of(measured)
    figures = {"mnist": 0.99, "hflip": 0.6, "min": 0.6}
    rates = {"mnist": 0.1, "hflip": 0.9, "max": 0.9}
    write(measured / "metrics" / "outliers.json", {"auroc": figures, "fpr_at_95_tpr": rates, "images": 500})
    write(measured / "reports" / "outliers" / "figures.json", [{"file": "roc.svg", "title": "ROC", "caption": "All."}])
    (measured / "reports" / "outliers" / "roc.svg").write_text("<svg/>")
    page = page_of(measured)
    section = page[page.index('id="outliers"') :]
    assert re.findall(r'<th scope="col">([^<]*)', section)[1:] == ["MNIST", "Hflip", "Worst"]
    assert re.findall(r"<td>([^<]*)", section) == ["0.99", "0.6", "0.6", "0.1", "0.9", "0.9"]
    assert ">ROC<" in section


@pytest.mark.parametrize("file", ["../../../params.yaml", "page.html", "/etc/passwd", ""])
def test_a_figure_from_another_place_or_of_another_kind_is_refused(measured: Path, file: str) -> None:
    evaluated(measured, "vae", BOUND, [{"file": file, "title": "x", "caption": "x"}])
    with pytest.raises(DataError, match="is not a png, svg or csv file of this folder"):
        page_of(measured)


def test_a_promised_figure_that_is_missing_is_named(measured: Path) -> None:
    (measured / "reports" / "models" / "vae" / "samples.png").unlink()
    with pytest.raises(DataError, match=r"vae/samples\.png: named in figures\.json but missing"):
        page_of(measured)


def test_a_damaged_metrics_file_is_named_and_the_old_page_stays(measured: Path) -> None:
    before = page_of(measured)
    (measured / "metrics" / "vae.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics/vae\.json: not JSON"):
        page_of(measured)
    assert (measured / "reports" / "index.html").read_text() == before


def test_the_same_files_give_the_same_page(measured: Path) -> None:
    assert page_of(measured) == page_of(measured)


def test_every_picture_has_words_and_every_table_has_headers(measured: Path, params: Params) -> None:
    page = page_of(measured)
    assert all('alt="' in image and 'alt=""' not in image for image in re.findall(r"<img[^>]*>", page))
    assert page.count("<table") == page.count("<thead") == page.count('<th scope="col">Model')
    headings = [int(level) for level in re.findall(r"<h([1-4])", page)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings)), "no level is skipped"
