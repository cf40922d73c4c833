"""Make the pictures of README and docs from what `make run` left: `.venv/bin/python docs/pictures/make.py`.

    docs/pictures/report.webp         the demo batch's report in a browser: its head and the first flagged images
    docs/pictures/family.webp         real images, and a row of images from each model
    docs/pictures/samples/NAME.webp   one model's row, for its page
    examples/tour.ipynb               the notebook, run again, with its outputs

Run it in the project's top folder after `make run`. Needs Debian's chromium and what `make test` installs.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

from densitywatch.data.dataset import open_split, read_info
from densitywatch.files import write_whole
from densitywatch.loading import load_model
from densitywatch.params import load_params

HERE = Path(__file__).resolve().parent
COLUMNS = 10
CELL, GAP = 56, 3
"""Pixels of an image in a row, and between two images."""
NAMES = {
    "real_images": "real images",
    "pixelcnn": "PixelCNN",
    "pixelrnn": "PixelRNN",
    "conditional_pixelcnn": "conditional PixelCNN",
    "vae": "VAE",
    "autoencoder": "autoencoder",
    "gan": "GAN",
    "dcgan": "DCGAN",
    "conditional_gan": "conditional GAN",
}
"""The rows of family.webp from the top; models with other names come below."""
MARGIN = 190
"""Pixels for the names at the left of family.webp."""
WINDOW = {"width": 1080, "height": 900}
"""Pixels of the browser's page: four cards side by side."""
CARDS = 4
"""Flagged images in report.webp."""
SHORTENED = """cards => {
  for (const left of document.querySelectorAll("main > .panel, main > .tools")) {
    if (left.previousElementSibling.tagName === "H2" && left.matches(".panel")) left.previousElementSibling.remove();
    left.remove();
  }
  const all = [...document.getElementById("gallery").children];
  all.slice(cards).forEach(card => card.remove());
  return Math.ceil(document.getElementById("gallery").getBoundingClientRect().bottom);
}"""
"""Takes histogram and filters from the page, keeps the first cards, and says where they end."""
SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the pictures of README and docs from what `make run` left.")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder that the pictures go to")
    parser.add_argument("--tour", type=Path, default=HERE.parents[1] / "examples" / "tour.ipynb", help="the notebook")
    asked = parser.parse_args()
    root = Path.cwd()
    strips = {name: strip(images) for name, images in family(root).items()}
    for name, row in strips.items():
        save(asked.out / "samples" / f"{name}.webp", row)
    save(asked.out / "family.webp", sheet(strips))
    save(asked.out / "report.webp", report(root / "data" / "outliers" / "demo" / "report.html"))
    run_tour(asked.tour, root)


@torch.no_grad()
def family(root: Path) -> dict[str, np.ndarray]:
    """COLUMNS images (C, H, W) a row: real ones, then what each model of params.yaml draws, in the same order.

    A model with labels draws one image of each label. The autoencoder draws nothing: it gives the real images again.
    """
    data = root / "data" / "prepared"
    names = read_info(data).class_names
    test = open_split(data, "test")
    first = [int(np.argmax(test.labels == label)) for label in range(min(COLUMNS, len(names)))]
    shown = (first + list(range(COLUMNS)))[:COLUMNS]
    rows = {"real_images": np.stack([test.images[i] for i in shown])}
    for name in load_params(root / "params.yaml").models:
        model: Any = load_model(str(root / "models" / name))
        if hasattr(model, "sample"):
            labels = torch.arange(COLUMNS) % len(names) if getattr(model, "conditional", False) else None
            generator = torch.Generator().manual_seed(SEED)
            rows[name] = model.sample(COLUMNS, labels=labels, generator=generator).numpy()
        else:
            own = open_split(data, "test", model.size).images
            rows[name] = model.reconstruct(torch.from_numpy(np.stack([own[i] for i in shown]))).numpy()
    return rows


def strip(images: np.ndarray) -> Image.Image:
    """Images (N, C, H, W) in one row on white."""
    row = Image.new("RGB", (len(images) * (CELL + GAP) - GAP, CELL), "white")
    for i, image in enumerate(images):
        picture = Image.fromarray(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0).copy())
        row.paste(picture.resize((CELL, CELL), Image.Resampling.NEAREST), (i * (CELL + GAP), 0))
    return row


def sheet(strips: dict[str, Image.Image]) -> Image.Image:
    """All rows with their names at the left."""
    width = MARGIN + max(row.width for row in strips.values())
    page = Image.new("RGB", (width, len(strips) * (CELL + 2 * GAP)), "white")
    font = ImageFont.load_default(17)
    for i, name in enumerate(sorted(strips, key=[*NAMES, *strips].index)):
        top = i * (CELL + 2 * GAP)
        shown = NAMES.get(name, name.replace("_", " "))
        ImageDraw.Draw(page).text((4, top + CELL // 2), shown, "#1b1b1b", font, anchor="lm")
        page.paste(strips[name], (MARGIN, top))
    return page


def report(page: Path) -> Image.Image:
    """A batch's report as a browser shows it: its head and its first CARDS images, without histogram and filter."""
    if not page.is_file():
        sys.exit(f"{page}: no report here; run `make run` first")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        sys.exit("a picture of the report needs Chromium; run `sudo apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        window = browser.new_page(viewport=WINDOW, color_scheme="light")
        window.goto(page.as_uri())
        bottom = window.evaluate(SHORTENED, CARDS)
        window.set_viewport_size({"width": WINDOW["width"], "height": bottom + 16})
        taken = window.screenshot()
        browser.close()
    return Image.open(io.BytesIO(taken)).convert("RGB")


def save(path: Path, picture: Image.Image) -> None:
    """Write a WebP file and say how large it is: at most 256 colours, then nothing is lost."""
    few = picture.quantize(256, dither=Image.Dither.NONE).convert("RGB")
    file = io.BytesIO()
    few.save(file, "WEBP", lossless=True, quality=100, method=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.getvalue())
    print(f"{path}: {picture.width} x {picture.height} pixels, {file.tell() / 1000:.0f} kB")


def run_tour(path: Path, root: Path) -> None:
    """Run the notebook in the project `root` and keep its outputs, without what differs from machine to machine."""
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(root)}}
    )
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        if cell.cell_type == "code":  # progress goes to stderr
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB with its outputs")


if __name__ == "__main__":
    main()
