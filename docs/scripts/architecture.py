"""Draw docs/pictures/architecture.svg, the way of an image from file to verdict: `python docs/scripts/architecture.py`.

A test compares the file with what this draws, and the paths in it with the tree.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "pictures" / "architecture.svg"
WIDTH, HEIGHT = 1280, 696
BOX, GAP, LEFT, TALL = 190, 20, 20, 104
COLOURS = {
    "file": ("#fff8e1", "#b28704"),
    "data": ("#e3f2fd", "#1565c0"),
    "models": ("#ede7f6", "#5e35b1"),
    "detector": ("#e8f5e9", "#2e7d32"),
    "evaluation": ("#f3e5f5", "#8e24aa"),
    "registry": ("#fbe9e7", "#d84315"),
    "batches": ("#e0f7fa", "#00838f"),
}
LEARN, SIDE, WATCH, RESULT = 62, 206, 392, 552
"""The tops of the four rows of boxes."""


def left(column: int) -> int:
    return LEFT + column * (BOX + GAP)


BOXES: list[tuple[int, int, str, str, list[str], str]] = [
    # column, top, colour, title, lines, file
    (0, LEARN, "file", "Images", ["Fashion-MNIST, or your", "folder, archive, bucket"], "params.yaml"),
    (1, LEARN, "data", "fetch, prepare", ["files are checked; images", "become uint8 arrays"], "data/prepare.py"),
    (2, LEARN, "models", "train", ["eight models; PixelCNN", "gives log p of a pixel"], "training/loop.py"),
    (3, LEARN, "detector", "calibrate", ["fits the scores; ranks", "the calibration images"], "detector/calibrate.py"),
    (4, LEARN, "registry", "register, gate", ["candidate and champion,", "same images, now"], "registry/gate.py"),
    (5, LEARN, "registry", "champion", ["the detector on watch;", "a person may choose it"], "registry/versions.py"),
    (1, SIDE, "data", "five splits", ["train · validation", "calibration · gate · test"], "data/dataset.py"),
    (2, SIDE, "evaluation", "evaluate", ["bits/dim, samples, FID,", "labels, latent space"], "evaluation/evaluate.py"),
    (3, SIDE, "evaluation", "benchmark", ["against a panel of outliers", "that no fit reads"], "outlier_benchmark/"),
    (4, SIDE, "evaluation", "report", ["reports/index.html and", "metrics/*.json, in git"], "evaluation/report/"),
    (0, WATCH, "file", "A batch", ["a folder, zip, tar or", "Parquet in the inbox"], "batches/inbox.py"),
    (1, WATCH, "data", "open", ["one entry a file; nothing", "is unpacked to disk"], "data/inputs/source.py"),
    (2, WATCH, "data", "decode", ["in a process of its own,", "with limits"], "data/decoding/"),
    (3, WATCH, "detector", "read", ["PixelCNN: how surprising", "each pixel is"], "detector/feature_cache.py"),
    (4, WATCH, "detector", "score", ["members' scores, added", "up as tail surprises"], "detector/tail_combination.py"),
    (5, WATCH, "detector", "p-value", ["rank among the scores of", "calibration images"], "detector/conformal.py"),
    (2, RESULT, "batches", "quarantined", ["what cannot be read has", "a row with the reason"], "batches/chunks.py"),
    (3, RESULT, "batches", "review", ["a person's verdicts:", "outlier or fine"], "batches/review/"),
    (4, RESULT, "batches", "results", ["scores.parquet, a report,", "summary.json; all at once"], "batches/results.py"),
    (5, RESULT, "batches", "flags", ["one budget for a stream,", "or each batch by itself"], "detector/stream.py"),
]
ARROWS: list[tuple[int, int, int, int]] = [
    # from column and top, to column and top
    *((column, LEARN, column + 1, LEARN) for column in range(5)),
    (1, LEARN, 1, SIDE),
    (2, LEARN, 2, SIDE),
    (3, LEARN, 3, SIDE),
    *((column, WATCH, column + 1, WATCH) for column in range(5)),
    (5, WATCH, 5, RESULT),
    (5, RESULT, 4, RESULT),
    (4, RESULT, 3, RESULT),
    (2, WATCH, 2, RESULT),
]


def box(column: int, top: int, colour: str, title: str, lines: list[str], file: str) -> str:
    x, (fill, edge) = left(column), COLOURS[colour]
    parts = [
        f'<rect x="{x}" y="{top}" width="{BOX}" height="{TALL}" rx="9" fill="{fill}" stroke="{edge}"/>',
        f'<text x="{x + 11}" y="{top + 25}" class="title" fill="{edge}">{escape(title)}</text>',
    ]
    parts += [
        f'<text x="{x + 11}" y="{top + 46 + 17 * n}" class="line">{escape(line)}</text>' for n, line in enumerate(lines)
    ]
    parts.append(f'<text x="{x + 11}" y="{top + 91}" class="file">{escape(file)}</text>')
    return "\n".join(parts)


def arrow(column: int, top: int, to_column: int, to_top: int) -> str:
    x, to_x = left(column), left(to_column)
    middle = TALL // 2
    if top != to_top:
        points = (x + BOX // 2, top + TALL, to_x + BOX // 2, to_top - 3)
    elif to_column > column:
        points = (x + BOX, top + middle, to_x - 3, to_top + middle)
    else:
        points = (x, top + middle, to_x + BOX + 3, to_top + middle)
    return line(f"M{points[0]} {points[1]}L{points[2]} {points[3]}")


def line(way: str) -> str:
    return f'<path d="{way}" class="way"/>'


def heading(top: int, text: str, small: str) -> str:
    return (
        f'<text x="{LEFT}" y="{top}" class="heading">{escape(text)}'
        f'<tspan class="line" dx="12">{escape(small)}</tspan></text>'
    )


def draw() -> str:
    """The whole picture as SVG."""
    centre = left(5) + BOX // 2
    bottom = left(3) + BOX // 2, left(4) + BOX // 2
    extra = [
        # evaluate and benchmark into the report
        line(f"M{left(2) + BOX // 2} {SIDE + TALL}V{SIDE + TALL + 14}H{bottom[1]}V{SIDE + TALL + 4}"),
        line(f"M{left(3) + BOX} {SIDE + TALL // 2}H{left(4) - 3}"),
        # the champion is what reads, scores and ranks
        line(f"M{centre} {LEARN + TALL}V{WATCH - 24}H{bottom[0]}V{WATCH - 3}"),
        line(f"M{bottom[1]} {WATCH - 24}V{WATCH - 3}"),
        line(f"M{centre} {WATCH - 24}V{WATCH - 3}"),
        # a quarantined file is in the results as well
        line(f"M{left(2) + BOX // 2} {RESULT + TALL}V{RESULT + TALL + 18}H{bottom[1]}V{RESULT + TALL + 4}"),
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'aria-label="The way of an image from file to verdict">',
        "<style>",
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#263238}",
        ".heading{font-size:18px;font-weight:600}.title{font-size:16px;font-weight:600}",
        ".line{font-size:12.5px;font-weight:400}",
        ".file{font-size:10.5px;font-family:ui-monospace,'DejaVu Sans Mono',monospace;fill:#546e7a}",
        ".way{fill:none;stroke:#546e7a;stroke-width:1.6;marker-end:url(#end)}",
        "</style>",
        '<defs><marker id="end" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#546e7a"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#ffffff"/>',
        heading(38, "Learn", "make run: every stage of dvc.yaml that is not up to date, then the registry"),
        heading(WATCH - 34, "Watch", "densitywatch score, or the scheduled job: every batch that comes in"),
        *extra,
        *(arrow(*way) for way in ARROWS),
        *(box(*given) for given in BOXES),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(draw(), encoding="utf-8")
    print(TARGET)
