"""A likelihood is proven by a file that another process decodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from densitywatch.data.dataset import open_split
from densitywatch.errors import ModelError
from densitywatch.evaluation.coding.image_code import HEADER, decode_images, read_code
from densitywatch.evaluation.measures.code_length import verify_likelihood
from densitywatch.params import Params


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixelcnn", "by_label"])
def test_a_densitys_file_decodes_elsewhere_and_has_the_computed_size(name: str, project: Path, params: Params) -> None:
    length = verify_likelihood(name, 48, params, project, project / "out.dwcode")
    assert length.images == 48
    # the header, less than two words at the end, and a byte an image for labels are all that a file adds
    added = 8 * (HEADER.size + 8 + (48 if name == "by_label" else 0)) / (48 * 64)
    assert length.computed - 0.001 < length.file < length.computed + added + 0.01
    assert min(length.png, length.webp, length.xz) > 0
    images = open_split(project / "data" / "prepared", "test").images[:48]
    assert np.array_equal(decode_images(project / "models" / name, read_code(project / "out.dwcode")), images)


@pytest.mark.slow
def test_a_vaes_file_decodes_elsewhere_and_costs_minus_the_elbo_and_the_first_bits(
    project: Path, params: Params
) -> None:
    length = verify_likelihood("vae", 48, params, project)
    first = (16 * 4 * 16 + 64) / (48 * 64)  # bits that pay for the first chunk's latents, a dimension
    assert abs(length.file - length.computed) < first + 8 * HEADER.size / (48 * 64) + 0.1


def test_a_missing_model_and_no_images_are_refused(project: Path, params: Params) -> None:
    with pytest.raises(ModelError, match="no such model"):
        verify_likelihood("nothing", 2, params, project)
    with pytest.raises(ModelError, match="at least one"):
        verify_likelihood("pixelcnn", 0, params, project)
