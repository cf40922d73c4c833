"""Lossless compression as a yardstick: bits/dim of pixelcnn_pyramid next to PNG, WebP and JPEG XL on the same images.

    python benchmarks/pyramid/compression.py train OUT [--seconds N]   fits a model to windows of the training part
    python benchmarks/pyramid/compression.py measure OUT [--code]      the table, of the part that was held out
    python benchmarks/pyramid/compression.py                           both, in var/pyramid

Without folders the images are scikit-learn's two photographs (427 x 640, RGB): the left 448 columns are to train on,
the right 192 are held out, so no pixel is shared. They were JPEG files once; that they were shows in their pixels, and
helps every learned model. `--images FOLDER --held-out FOLDER` takes other images, all of which have the same channels.

`--more FOLDER` has large photographs (RGB) to train on beside them: MORE of the windows are cut out of these, shrunk by
a random factor and saved as JPEG files with the tables of scikit-learn's two. No window comes twice, so none is learnt
by heart. Free ones are in Debian's packages:

    apt-get download plasma-workspace-wallpapers mate-backgrounds
    for file in *.deb; do dpkg -x $file FOLDER; done

The model's own weights, of which a decoder has a copy, are not counted. `measure` also says how many bits each level
takes, of the images that were trained on as well: where the two differ, it knows its training images by heart.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import io
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from densitywatch.evaluation.coding.image_code import one_thread
from densitywatch.evaluation.coding.range_code import decode_walk, encode_walk
from densitywatch.evaluation.measures.code_length import size_as
from densitywatch.models.common.pixel_values import bits_per_dim
from densitywatch.models.lossless_split import take_apart
from densitywatch.models.pixelcnn_pyramid import PixelCNNPyramid, Settings
from densitywatch.models.storage import load_model_folder, save_model
from densitywatch.params import TrainingParams
from densitywatch.training.loop import update_ema
from densitywatch.training.optimizers import make_optimizers, schedule, set_learning_rate
from densitywatch.training.steps import clip_gradients

HELD_OUT = 448
"""The column of a photograph from which on it is held out; a multiple of 16, the squares that JPEG codes colours in."""
ALIGNED = 16
"""Pixels: windows for the finest level begin at a multiple of this."""
COARSER = 0.27
"""Share of the time for the levels below the finest, which sooner know their images by heart."""
WINDOW = 256
SMALLEST = 192
"""Images with a shorter side are not trained on where there are larger ones."""
STEPS = 10_000
"""Of the schedule of the learning rate, which goes by time."""
WARM_UP = 30
LEARNING_RATE = 6e-3
MORE = 0.6
"""Share of the windows that are of the photographs of --more."""
LARGEST, SMALLEST_FILE = 1600, 100_000
"""Pixels of the shorter side to which these are shrunk, and bytes below which a file is plain or small."""
LEAST_BITS = 1.0
"""Bits/dim as a JPEG file with the two's tables, below which a picture is a drawing or a gradient."""
Images = list[NDArray[np.uint8]]
"""Each (C, H, W)."""


def photographs() -> tuple[Images, Images]:
    """scikit-learn's two: (to train on, held out)."""
    from sklearn.datasets import load_sample_images

    whole = [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in load_sample_images().images]
    return [x[:, :, :HELD_OUT] for x in whole], [x[:, :, HELD_OUT:] for x in whole]


def folder(path: Path, most: int) -> Images:
    """The first images of a folder, by name."""
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in (".png", ".jpg", ".bmp"))[:most]
    arrays = [np.asarray(Image.open(file)) for file in files]
    return [x[None] if x.ndim == 2 else np.ascontiguousarray(x.transpose(2, 0, 1)) for x in arrays]


def window(images: Images, rng: np.random.Generator, side: int, every: int) -> NDArray[np.uint8]:
    """A random window, (1, C, side, side), mirrored at random; it begins at a multiple of `every` pixels."""
    image = images[rng.integers(len(images))]
    top, left = (every * rng.integers(0, (length - side) // every + 1) for length in image.shape[1:])
    found = image[None, :, top : top + side, left : left + side]
    up, across = (slice(None, None, step) for step in rng.choice([1, -1], 2))
    return np.ascontiguousarray(found[..., up, across])


def larger_photographs(path: Path) -> Images:
    """RGB photographs in and below a folder, (H, W, 3): the largest file of each folder of sizes, links left out."""
    found: dict[Path, Path] = {}
    for file in sorted(path.rglob("*")):
        if file.suffix.lower() not in (".png", ".jpg", ".jpeg") or file.is_symlink() or not file.is_file():
            continue
        # a wallpaper has a folder of its own with a file for each size, named by it
        same = file.parent if re.fullmatch(r"\d+x\d+", file.stem) else file
        if file.stat().st_size >= max(SMALLEST_FILE, found[same].stat().st_size if same in found else 0):
            found[same] = file
    kept = []
    for file in found.values():
        image = Image.open(file).convert("RGB")
        image, small = (shrunk(image, shorter) for shorter in (LARGEST, 2 * WINDOW))
        bits = 8 * len(as_jpeg(small)) / (3 * small.width * small.height)
        if min(image.size) >= 2 * WINDOW and bits >= LEAST_BITS:
            kept.append(np.asarray(image))
    return kept


def shrunk(image: Image.Image, shorter: int) -> Image.Image:
    """The image with a shorter side of at most so many pixels."""
    times = min(1.0, shorter / min(image.size))
    return image.resize((round(times * image.width), round(times * image.height)), Image.Resampling.LANCZOS)


@functools.cache
def tables() -> dict[int, list[int]]:
    """Those of scikit-learn's two JPEG files, which are the same."""
    from sklearn import datasets

    with Image.open(Path(datasets.__file__).parent / "images/china.jpg") as photograph:
        return dict(photograph.quantization)  # type: ignore[attr-defined]


def as_jpeg(image: Image.Image) -> bytes:
    """A JPEG file as scikit-learn's two were, which have every pixel of each colour."""
    file = io.BytesIO()
    image.save(file, "JPEG", qtables=tables(), subsampling=0)
    return file.getvalue()


def fresh_window(photographs: Images, rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """A window of one of them, (1, 3, side, side), shrunk by a random factor, once a JPEG file, mirrored at random."""
    whole = photographs[rng.integers(len(photographs))]
    most = max(1.0, 0.98 * min(whole.shape[:2]) / side)
    cut = min(round(side * math.exp(rng.uniform(math.log(max(1.0, 0.3 * most)), math.log(most)))), *whole.shape[:2])
    top, left = (int(rng.integers(0, length - cut + 1)) for length in whole.shape[:2])
    part = Image.fromarray(whole[top : top + cut, left : left + cut]).resize((side, side), Image.Resampling.LANCZOS)
    with Image.open(io.BytesIO(as_jpeg(part))) as decoded:
        found = np.asarray(decoded).transpose(2, 0, 1)[None]
    return np.ascontiguousarray(found[..., :: rng.choice([1, -1])])


def parts_of(model: PixelCNNPyramid) -> list[list[int]]:
    """The networks, by their number in `model.details`, that are trained by themselves; the PixelCNN with the last.

    The factors of p(x) have networks of their own, so each can be trained as if it were alone. The finest level has
    three quarters of the values, the next one three quarters of the rest: their networks get a process each.
    """
    numbers = list(range(len(model.details)))
    if model.settings.shared or len(numbers) < 6:
        return [numbers]
    return [[0], [1], [2], [3], numbers[4:]]


def loss_of(model: PixelCNNPyramid, x: Tensor, numbers: list[int], coarse: bool) -> Tensor:
    """Bits/dim that the networks with these numbers take, and the PixelCNN with `coarse`."""
    splits = model.splits(*x.shape[2:])
    image, parts = take_apart(x, splits)
    nats = [
        model.estimate(split, means, d, x.shape[2:], model.settings.crop or max(means.shape))
        for number, (split, (means, d)) in enumerate(zip(splits, parts, strict=True))
        if number in numbers or model.settings.shared
    ]
    if coarse:
        nats.append(model.coarse_log_prob(image).sum((1, 2)))
    return bits_per_dim(torch.stack(nats).sum(0), x[0].numel()).mean()


def build(images: Images, settings: dict[str, Any]) -> PixelCNNPyramid:
    """The same new model in every process."""
    torch.manual_seed(1)
    side = min(WINDOW, *(length // 16 * 16 for x in images for length in x.shape[1:]))
    return PixelCNNPyramid(Settings(**settings), channels=len(images[0]), size=side, classes=0)


def train(
    images: Images, more: Images, out: Path, seconds: float, batch: int, settings: dict[str, Any], part: int
) -> None:
    """Fit one part of a model to random windows for so many seconds of processor time, and save it in `out`."""

    def some() -> NDArray[np.uint8]:
        if more and rng.random() < MORE:
            return fresh_window(more, rng, model.size)
        return window(images, rng, model.size, every)

    torch.set_num_threads(1)
    model, ema = build(images, settings), build(images, settings)
    parts = parts_of(model)
    numbers, coarse = parts[part], part == len(parts) - 1
    rng = np.random.default_rng(1 + part)
    # the finest level sees JPEG's squares; coarser ones have few values, and more where a window begins anywhere
    finest = 0 in numbers or 1 in numbers
    every, seconds = (ALIGNED, seconds) if finest else (1, COARSER * seconds)
    training = TrainingParams(
        steps=STEPS, batch_size=batch, optimizer="muon", learning_rate=LEARNING_RATE, ema_decay=0.99, warmup_steps=1
    )
    optimizers = make_optimizers(model, training)
    cpu, step, spent = time.process_time(), 0, 0.0
    while spent < seconds:
        # the cosine follows the processor's time; the first steps are small ones
        share = schedule(int(STEPS * spent / seconds), training) * min(1.0, (step + 1) / WARM_UP)
        set_learning_rate(optimizers, share)
        x = torch.from_numpy(np.concatenate([some() for _ in range(batch)]))
        loss = loss_of(model, x, numbers, coarse)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_gradients(model, training.gradient_clip)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        update_ema(ema, model, min(training.ema_decay, (1 + step) / (10 + step)))
        step, spent = step + 1, time.process_time() - cpu
        if step % 50 == 0:
            print(f"part {part}, step {step}: {loss.item():.3f} bits/dim, {spent:.0f} s of processor", flush=True)
        if step % 200 == 0 or spent >= seconds:
            save_model(ema, out / f"part-{part}", kind="pixelcnn_pyramid", class_names=(), about={})


def gather(out: Path, count: int) -> None:
    """One model of the parts that `count` processes trained."""
    models: list[Any] = [load_model_folder(out / f"part-{part}") for part in range(count)]
    model = models[-1]
    for trained, numbers in zip(models, parts_of(model), strict=True):
        for number in numbers:
            model.details[number] = trained.details[number]
    save_model(model, out, kind="pixelcnn_pyramid", class_names=(), about={})


def train_parts(images: Images, out: Path, settings: dict[str, Any]) -> None:
    """Train all parts, each in a process of one thread, by this program with the same arguments."""
    count = len(parts_of(build(images, settings)))
    commands = [[sys.executable, *sys.argv, "--part", str(part)] for part in range(count)]
    processes = [subprocess.Popen(command) for command in commands]  # noqa: S603 - this program
    if any([process.wait() for process in processes]):
        sys.exit("a part was not trained; its process has said why")
    gather(out, count)


@torch.no_grad()
def by_level(model: Any, images: Images) -> dict[str, float]:
    """Bits/dim of the images, all levels' sum of which is the whole; level 0 is the finest."""
    found: dict[str, float] = {}
    for image in images:
        coarse, details = model.factors(torch.from_numpy(np.array(image))[None])
        for name, nats in [*((f"level {split.level}", nats) for split, nats in details), ("coarsest", coarse)]:
            found[name] = found.get(name, 0.0) - nats.double().sum().item() / math.log(2)
    dimensions = sum(image.size for image in images)
    return {name: bits / dimensions for name, bits in found.items()}


def measure(images: Images, trained_on: Images, where: Path, code: bool) -> None:
    """Print bits/dim of the images in each format and by the model, and check the coded file in another process."""
    model: Any = load_model_folder(where)
    dimensions = sum(x.size for x in images)
    shapes = ", ".join(sorted({"x".join(map(str, x.shape)) for x in images}))
    print(f"{len(images)} images, {shapes}; bits/dim:")
    forms: dict[str, tuple[str, dict[str, Any]]] = {
        "PNG, optimised": ("PNG", {"optimize": True}),
        "WebP, lossless, method 6": ("WEBP", {"lossless": True, "quality": 100, "method": 6}),
    }
    try:
        importlib.import_module("pillow_jxl")  # Pillow knows the format from then on
        for effort in (7, 9):
            forms[f"JPEG XL, lossless, effort {effort}"] = ("JXL", {"lossless": True, "effort": effort})
    except ImportError:
        print("  JPEG XL: not installed; `make .venv/ready-dev` installs it")
    for name, (form, options) in forms.items():
        print(f"  {name:30} {8 * sum(size_as(x, form, **options) for x in images) / dimensions:.4f}")
    print(f"  {'pixelcnn_pyramid, computed':30} {sum(by_level(model, images).values()):.4f}")
    for name, part in (("held out", images), ("trained on", trained_on)):
        levels = by_level(model, part)
        rest = ", ".join(f"{level} {bits:.4f}" for level, bits in levels.items())
        print(f"    {name}: {sum(levels.values()):.4f} = sum of {rest}")
    if code:
        total = sum(coded(model.double(), x, where) for x in images)
        print(f"  {'pixelcnn_pyramid, files':30} {8 * total / dimensions:.4f}")


def coded(model: Any, image: NDArray[np.uint8], where: Path) -> int:
    """Bytes of the image's file. Raises ValueError where another process does not decode it byte for byte."""
    with one_thread(), tempfile.TemporaryDirectory() as scratch:
        file, decoded = Path(scratch) / "file", Path(scratch) / "decoded.npy"
        words = encode_walk(model, torch.from_numpy(np.array(image))[None])
        file.write_bytes(np.array(image.shape[1:], "<u2").tobytes() + words.astype("<u4").tobytes())
        command = [sys.executable, __file__, "decode", str(where), "--file", str(file), "--to", str(decoded)]
        subprocess.run(command, check=True)  # noqa: S603 - this program
        if not np.array_equal(np.load(decoded, allow_pickle=False)[0], image):
            raise ValueError(f"{where}: the decoded image is not the coded one")
        return file.stat().st_size


def decode(where: Path, file: Path, to: Path) -> None:
    """What `coded` has another process do."""
    model: Any = load_model_folder(where)
    data = file.read_bytes()
    height, width = np.frombuffer(data[:4], "<u2").tolist()
    with one_thread():
        np.save(to, decode_walk(model.double(), 1, height, width, np.frombuffer(data[4:], "<u4").astype(np.uint32)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["train", "measure", "decode"], help="decode: for measure --code")
    parser.add_argument("out", nargs="?", type=Path, default=Path("var/pyramid"))
    parser.add_argument("--seconds", type=float, default=240, help="of processor time, for each part")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--more", type=Path, help="a folder of large photographs to train on as well")
    parser.add_argument("--most", type=int, default=100, help="images of a folder")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the model, NAME=VALUE")
    parser.add_argument("--code", action="store_true", help="also code into a file and decode it")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    wishes = parser.parse_args()
    if wishes.what == "decode":
        decode(wishes.out, wishes.file, wishes.to)
        sys.exit()
    to_train, held_out = photographs()
    if wishes.images:
        to_train = folder(wishes.images, wishes.most)
    if wishes.held_out:
        held_out = folder(wishes.held_out, wishes.most)
    if wishes.what != "measure":
        values = dict(pair.split("=") for pair in wishes.set)
        to_train = [x for x in to_train if min(x.shape[1:]) >= SMALLEST] or to_train
        if wishes.part is None:
            train_parts(to_train, wishes.out, values)
        else:
            more = larger_photographs(wishes.more) if wishes.more else []
            train(to_train, more, wishes.out, wishes.seconds, wishes.batch, values, wishes.part)
    if wishes.what != "train" and wishes.part is None:
        measure(held_out, to_train, wishes.out, wishes.code)
