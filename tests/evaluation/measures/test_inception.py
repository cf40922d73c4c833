"""The published FID: its weights are checked before they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from densitywatch.errors import ModelError
from densitywatch.evaluation.measures.inception import inception, inception_fid, load_inception


def test_weights_that_are_not_inceptions_are_refused_before_they_take_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = inception().state_dict().keys()
    small, another = tmp_path / "small.safetensors", tmp_path / "another.safetensors"
    safetensors.torch.save_file({name: torch.zeros(1) for name in names}, small)
    safetensors.torch.save_file({name: torch.zeros(1) for name in names} | {"more": torch.zeros(9)}, another)
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("their data was read"))
    for path, reason in ((small, "has the shape"), (another, "'more' is in the file alone")):
        with pytest.raises(ModelError, match=f"not Inception's weights as safetensors.*{reason}"):
            load_inception(path)


@pytest.mark.slow
def test_the_published_fid_needs_inceptions_weights_and_says_what_is_wrong_with_others(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = tmp_path / "inception.safetensors"
    safetensors.torch.save_file(inception().state_dict(), whole)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    assert inception_fid(whole, images[:3], images[3:]) > 0
    assert inception_fid(whole, images[:3], images[:3]) == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ModelError, match="no such file"):
        load_inception(tmp_path / "elsewhere.safetensors")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(1)}, other)
    with pytest.raises(ModelError, match="not Inception's weights"):
        load_inception(other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not a file of weights")
    with pytest.raises(ModelError, match="not Inception's weights"):
        load_inception(broken)
