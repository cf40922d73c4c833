"""reports/index.html: everything that was measured, on one page that needs no server, script or network.

Nothing here imports torch: the page is made in a second.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from densitywatch.data.dataset import read_info
from densitywatch.errors import DataError
from densitywatch.evaluation.report.comparison import Metrics, at_one_number_of_labels, compare
from densitywatch.files import write_whole
from densitywatch.pages.words import duration, flat, number, readable
from densitywatch.params import Params
from densitywatch.sizes import in_pixels
from densitywatch.templates import data_uri, page_templates

TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
TABLE_ROWS = 40


@dataclass(frozen=True)
class Shown:
    """A figure as the template shows it: an image as a data URI, or a table."""

    file: str
    title: str
    caption: str
    alt: str
    rows: tuple[str, ...]
    source: str = ""
    header: list[str] = field(default_factory=list)
    body: list[list[str]] = field(default_factory=list)
    left_out: int = 0


@dataclass(frozen=True)
class Section:
    """One model's part of the page."""

    name: str
    kind: str
    metrics: dict[str, Any]
    settings: list[tuple[str, Any]]
    warnings: list[str]
    notes: list[str]
    figures: list[Shown]

    @property
    def facts(self) -> list[tuple[str, str]]:
        """Every metric as people read it: a mean with its standard error, a time in a unit that suits it."""
        return [
            (name.removesuffix("_seconds") + " time" * name.endswith("_seconds"), self._fact(name))
            for name in sorted(self.metrics)
            if not name.endswith("_stderr")
        ]

    def _fact(self, name: str) -> str:
        """One metric as text."""
        value, error = self.metrics[name], self.metrics.get(f"{name}_stderr")
        shown = duration(value) if name.endswith("_seconds") else number(value)
        return shown if error is None else f"{shown} ± {error:.2g}"

    def figure(self, file: str) -> Shown | None:
        """The figure with that file name; None if the model has none."""
        return next((figure for figure in self.figures if figure.file == file), None)


def write_report(params: Params, root: Path) -> Path:
    """Write reports/index.html about the models of `params`, the data and the outlier benchmark; returns its path.

    Reads data/prepared/dataset.json, metrics/*.json, reports/models/*/ and reports/outliers/. The page says what was
    not measured yet. The same files give the same bytes.

    Raises DataError when a file cannot be read, or when a figure that figures.json names is missing.
    """
    sections = [read_section(name, params, root) for name in params.models]
    metrics = {section.name: section.metrics for section in sections}
    outliers = read_json(root / "metrics" / "outliers.json")
    network = read_json(root / "metrics" / "classifier.json") or {}
    templates = page_templates(Path(__file__).parent, number=number, readable=readable, in_pixels=in_pixels)
    page = templates.get_template("report.html.j2").render(
        info=read_info(root / "data" / "prepared"),
        checks=flat(read_json(root / "metrics" / "data.json") or {}),
        sections=sections,
        network=network,
        floor=next((section.metrics for section in sections if "fid_floor" in section.metrics), None),
        raw_pixels=raw_pixel_probe(network, metrics),
        table=compare(metrics),
        panel=as_table(outliers or {}),
        outlier_figures=read_figures(root / "reports" / "outliers"),
        test_images=params.evaluate.test_images,
        importance_samples=params.evaluate.importance_samples,
    )
    target = root / "reports" / "index.html"
    write_whole(target, page)
    return target


def read_section(name: str, params: Params, root: Path) -> Section:
    """What the evaluation of one model wrote; its parts are empty if it has not run yet."""
    folder = root / "reports" / "models" / name
    about = read_json(folder / "about.json") or {}
    return Section(
        name=name,
        kind=params.models[name].kind,
        metrics=read_json(root / "metrics" / f"{name}.json") or {},
        settings=flat(about.get("settings", {})),
        warnings=about.get("warnings", []),
        notes=about.get("notes", []),
        figures=read_figures(folder),
    )


def read_figures(folder: Path) -> list[Shown]:
    """The figures that figures.json in `folder` names, ready to show; none if there is no such file."""
    listed = read_json(folder / "figures.json")
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise DataError(f"{folder / 'figures.json'}: not a list of figures; run the stage that writes it again")
    return [show(folder, entry) for entry in listed]


def show(folder: Path, entry: dict[str, Any]) -> Shown:
    """One entry of figures.json as the page shows it. It has file, title and caption, and may have alt and rows."""
    file = str(entry.get("file", ""))
    path = folder / file
    if Path(file).name != file or path.suffix not in {*TYPES, ".csv"}:
        raise DataError(
            f"{folder / 'figures.json'}: {file!r} is not a png, svg or csv file of this folder; run the stage"
            " that writes it again"
        )
    title, caption = str(entry.get("title", file)), str(entry.get("caption", ""))
    shown = Shown(
        file=file,
        title=title,
        caption=caption,
        alt=str(entry.get("alt") or f"{title}: {caption}"),
        rows=tuple(str(row) for row in entry.get("rows", ())),
    )
    try:
        if path.suffix == ".csv":
            header, body, left_out = read_table(path)
            return replace(shown, header=header, body=body, left_out=left_out)
        return replace(shown, source=data_uri(path.read_bytes(), TYPES[path.suffix]))
    except FileNotFoundError:
        raise DataError(f"{path}: named in figures.json but missing; run the stage that writes it again") from None


def read_table(path: Path) -> tuple[list[str], list[list[str]], int]:
    """Header and first TABLE_ROWS rows of a CSV file, and the number of rows left out."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        header = [readable(name) for name in next(reader, [])]
        body = [[shorter(value) for value in row] for row in islice(reader, TABLE_ROWS)]
        return header, body, sum(1 for _ in reader)


def shorter(value: str) -> str:
    """A number in a CSV cell with four digits; other text as it is."""
    try:
        return value if value.lstrip("-").isdecimal() else number(float(value))
    except ValueError:
        return value


def raw_pixel_probe(network: dict[str, Any], metrics: Mapping[str, Metrics]) -> tuple[int, float] | None:
    """From metrics/classifier.json, the linear probe on raw pixels: (labels, accuracy), None where it has no labels.

    At the number of labels that the comparison shows for the models' probes, or else at the most that there are.
    """
    prefix = "raw_pixel_probe_"
    curve = {int(name.removeprefix(prefix)): value for name, value in network.items() if name.startswith(prefix)}
    counts = (m.get("linear_probe_labels") for m in at_one_number_of_labels(metrics).values())
    shown = {int(count) for count in counts if isinstance(count, int)} & curve.keys()
    labels = min(shown, default=max(curve, default=0))
    return (labels, curve[labels]) if curve else None


def as_table(figures: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[Any]]], list[tuple[str, Any]]]:
    """metrics/outliers.json as (kinds of foreign images and "worst", a row for each figure, what fits no table)."""
    nested = {name: value for name, value in figures.items() if isinstance(value, dict)}
    members = [m for m in dict.fromkeys(m for value in nested.values() for m in value) if m not in ("min", "max")]
    rows = [
        (name, [*(value.get(member) for member in members), value.get("min", value.get("max"))])
        for name, value in nested.items()
    ]
    return [*members, "worst"], rows, flat({name: value for name, value in figures.items() if name not in nested})


def read_json(path: Path) -> Any:
    """The JSON in `path`; None if there is no such file. Raises DataError when it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}); run the stage that writes it again") from None
