"""Classes that are held out: fitted with the detector's own members, at a size that suits them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from densitywatch.outlier_benchmark.held_out_classes import RIVAL, fold_size, held_out_classes, measured
from tests.small_project import SIZE, make_project

ROOT = Path(__file__).parents[2]


def test_a_fold_fits_the_members_that_the_detector_has_not_those_that_params_name(tmp_path: Path) -> None:
    # as on a machine where calibrate went on without a member
    params = make_project(tmp_path, ROOT / "params.yaml", members=("composition", "lite0_place"), folds=1)
    folds = held_out_classes(params, tmp_path, ["composition"])
    assert [set(fold) for fold in folds.values()] == [{"detector", "composition", RIVAL}]
    assert all(np.isfinite(list(fold.values())).all() for fold in folds.values())


def test_a_member_that_a_fold_cannot_measure_is_left_out_with_the_reason() -> None:
    kept, left_out = measured(["composition", "own_place", "vae_kl", "transformation_judge"], 32)
    assert kept == ["composition"]
    assert left_out == [
        "own_place wants images of 64 pixels, and these have 32",
        "vae_kl reads the model 'vae'",
        "transformation_judge judges declared transformations",
    ]


def test_a_fold_reads_small_images_and_a_detector_of_larger_ones_alone_has_no_folds(tmp_path: Path) -> None:
    params = make_project(tmp_path, ROOT / "params.yaml", members=("own_place",), size=256)
    assert fold_size(params, SIZE) == 32
    assert held_out_classes(params, tmp_path, measured(["own_place"], 32)[0]) == {}
