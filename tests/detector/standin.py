"""A detector that costs nothing, for tests of the batch job: an image is the more outlying the brighter it is."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densitywatch.detector import conformal
from densitywatch.detector.detector import Scores


class Brightness:
    """Calibrated on mean intensities from 0 to 100."""

    size, channels, resize = 28, 1, "crop"
    false_discovery_rate, false_alarm_rate = 0.1, 0.01
    class_names: tuple[str, ...] = ()
    digest = "brightness-1"
    calibration = np.linspace(0.0, 100.0, 999)

    def __init__(self, *, channels: int = 1, seconds: float = 0.0) -> None:
        self.channels, self.seconds, self.seen = channels, seconds, 0

    def score(self, images: NDArray[np.uint8]) -> Scores:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (self.channels, self.size, self.size)
        self.seen += len(images)
        time.sleep(self.seconds)
        score = images.reshape(len(images), -1).mean(axis=1).astype(np.float64)
        p_value = conformal.p_values(self.calibration, score)
        return Scores(score, p_value, bits_per_dim=score / 100, members={"mean": score})

    def surprise_map(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images.mean(axis=1).astype(np.float32)

    def explain(self, scores: Scores, i: int) -> str:
        return f"its mean intensity is {scores.score[i]:.0f}"


def png(level: int = 50, *, size: tuple[int, int] = (28, 28), mode: str = "L", seed: int = 0) -> bytes:
    """A noisy image of about this mean intensity."""
    noise = np.random.default_rng(seed).integers(-5, 6, (size[1], size[0]))
    image = Image.fromarray((level + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def fill(folder: Path, count: int, *, bright: int = 0) -> Path:
    """`count` ordinary images and, after them, `bright` outlying ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"normal_{i:04d}.png").write_bytes(png(10 + i % 60, seed=i))
    for i in range(bright):
        (folder / f"odd_{i:04d}.png").write_bytes(png(200 + i, seed=i))
    return folder
