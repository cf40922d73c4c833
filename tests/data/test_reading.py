"""Images at another size: the same bytes everywhere, read as they are asked for, no more at once than memory holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from densitywatch.data import reading
from densitywatch.data.dataset import open_split
from densitywatch.data.reading import (
    Resized,
    Rows,
    at_size,
    images_at_once,
    in_memory,
    reading_size,
    resized,
    stored_size,
)
from densitywatch.errors import ModelError, ParamsError
from densitywatch.params import load_params


def smooth(count: int, channels: int, size: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images of a few waves, whose mean hardly depends on the size that they are seen at."""
    rng = np.random.default_rng(seed)
    at = np.linspace(0, 2 * np.pi, size)
    waves = np.sin(rng.uniform(0, 3, (count, channels, 1, 1)) + at[:, None] + rng.integers(0, 3) * at[None])
    return (127 + 100 * waves).round().astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_wanted_size_is_left_as_it_is(channels: int) -> None:
    images = smooth(3, channels, 28)
    assert resized(images, 28) is images
    assert at_size(images, 28) is images


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 32), (3, 37), (1, 300)])
def test_a_resized_image_keeps_its_shades_and_comes_out_alike_alone_and_in_a_batch(channels: int, size: int) -> None:
    images = smooth(4, channels, 256)
    small = resized(images, size)
    assert small.shape == (4, channels, size, size)
    assert small.dtype == np.uint8
    assert np.abs(small.mean((2, 3)) - images.mean((2, 3))).max() < 1.5
    for image, alone in zip(images, small, strict=True):
        assert (resized(image[None], size)[0] == alone).all()


def test_fine_stripes_become_grey_and_no_coarse_stripes() -> None:
    stripes = np.zeros((1, 3, 256, 256), np.uint8)
    stripes[..., ::2] = 255
    inside = resized(stripes, 32)[..., 2:-2, 2:-2]
    assert 120 <= inside.min() <= inside.max() <= 135


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_images_are_resized_when_they_are_asked_for(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "KEPT", kept)
    monkeypatch.setattr(reading, "PART", 2 * 3 * 64 * 64)  # two images
    images = smooth(7, 3, 64)
    whole, lazy = resized(images, 16), at_size(images, 16)
    assert isinstance(lazy, Resized)
    assert len(lazy) == 7
    assert lazy.shape == whole.shape
    for rows in (slice(2, 5), np.array([6, 0, 6]), whole[:, 0, 0, 0] >= 0, slice(None)):
        assert (lazy[rows] == whole[rows]).all()
    assert lazy[3].shape == (3, 16, 16)
    assert (lazy[3] == whole[3]).all()
    assert (np.array(Rows(lazy, np.array([4, 1]))) == whole[[4, 1]]).all()
    assert in_memory(lazy).flags.writeable


def test_a_split_is_read_at_the_size_of_its_reader(tmp_path: Path) -> None:
    images = smooth(5, 3, 64)
    np.save(tmp_path / "test.npy", images)
    np.save(tmp_path / "test_labels.npy", np.zeros(5, np.int64))
    assert isinstance(open_split(tmp_path, "test").images, np.memmap)
    split = open_split(tmp_path, "test", 20)
    assert (split.images[:] == resized(images, 20)).all()
    assert len(split) == 5


def test_who_does_not_ask_for_a_size_sees_at_most_32_pixels() -> None:
    assert [reading_size(None, size) for size in (14, 28, 32, 33, 256)] == [14, 28, 32, 32, 32]
    assert reading_size(64, 256) == 64


def test_a_size_beyond_the_datas_is_refused_by_name(project_root: Path, tmp_path: Path) -> None:
    text = (project_root / "params.yaml").read_text(encoding="utf-8")
    for name, key in (("vae", "    kind: vae\n"), ("classifier", "  settings: {}\n  training")):
        changed = text.replace(key, f"    size: 64\n{key}" if name == "vae" else f"  size: 64\n{key}")
        assert changed != text
        (tmp_path / "params.yaml").write_text(changed, encoding="utf-8")
        with pytest.raises(ParamsError, match=rf"{name}\.size is 64, more than the 28 pixels of data\.size"):
            load_params(tmp_path / "params.yaml")


def test_params_written_before_sizes_were_there_still_load(project_root: Path, tmp_path: Path) -> None:
    lines = (project_root / "params.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("  size: null")]
    assert len(kept) == len(lines) - 1
    (tmp_path / "params.yaml").write_text("".join(kept), encoding="utf-8")
    params = load_params(tmp_path / "params.yaml")
    assert params.detector.size is params.classifier.size is params.models["vae"].size is None


def test_a_batch_shrinks_with_the_size_of_its_images_and_never_to_nothing() -> None:
    assert images_at_once(500, 28) == 500
    assert images_at_once(250, 32) == 250
    sizes = [images_at_once(250, size) for size in (64, 128, 256, 1024)]
    assert sizes == sorted(sizes, reverse=True)
    assert 1 <= sizes[-1] < sizes[0]
    assert sizes[2] * 256 * 256 * reading.BYTES_A_PIXEL <= reading.MEMORY
    assert images_at_once(250, 20_000) == 1


@pytest.mark.parametrize("nonsense", ["8", 1.5, True, 0, 10**9])
def test_a_model_file_that_says_nonsense_of_its_datas_size_is_refused(nonsense: object) -> None:
    model = SimpleNamespace(size=8, header={"data_size": nonsense})
    with pytest.raises(ModelError, match="pixels a side"):
        stored_size(model)
