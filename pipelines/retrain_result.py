"""What a run of a commit gives back: the form of the artifact, and the page that people read. Standard library alone.

The worker writes it (commit_run.py); the CI side reads it from Prefect (ask_retrain.py) and makes a pull request of it
(propose_retrain.py). It comes from a server, so nothing in it is believed: only dvc.lock and metrics/*.json are
written, and words are shown as text.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from densitywatch.errors import DataError

VERSION = 1
KEY = "retrain-result"
TYPE = "densitywatch-retrain"
POINTS = 24
MOST_BYTES = 8 << 20
FILE = re.compile(r"dvc\.lock|metrics/[A-Za-z0-9_][\w.-]{0,100}\.json", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def check(value: Any) -> dict[str, Any]:
    """The result, if it has the form that this program writes; raises DataError with what does not fit."""
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise DataError("the run's result has another form; let server and CI run the same version of this project")
    files, removed = value.get("files"), value.get("removed")
    if not isinstance(files, dict) or not isinstance(removed, list):
        raise DataError("the run's result is damaged: it lists no files")
    if not isinstance(value.get("commit"), str) or COMMIT.fullmatch(value["commit"]) is None:
        raise DataError("the run's result is damaged: it names no commit")
    for name in [*files, *removed]:
        if not isinstance(name, str) or FILE.fullmatch(name) is None:
            raise DataError(f"the run's result has a file that no run changes: {str(name)[:100]}")
    if not all(_is_text(text) for text in files.values()) or sum(map(len, files.values())) > MOST_BYTES:
        raise DataError("the run's result is damaged: its files are no text, or larger than 8 MiB")
    return value


def _is_text(value: object) -> bool:
    """Whether it is text that can be written: JSON can say half a character."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def changed(result: dict[str, Any]) -> list[str]:
    """The files that git keeps and the run changed."""
    return sorted([*result["files"], *result["removed"]])


def title(result: dict[str, Any]) -> str:
    """One line that says what the run brought."""
    promoted = [str(row.get("model")) for row in _verdicts(result) if row.get("outcome") == "promoted"]
    what = f"{', '.join(promoted)} promoted" if 0 < len(promoted) < 4 else f"{len(promoted)} models promoted"
    return _word(f"Retrain {result['commit'][:12]}: {what}")


def verdict_lines(result: dict[str, Any]) -> list[str]:
    """What the gate said about each candidate, a line each."""
    rows = _verdicts(result)
    width = max((len(_word(row.get("model"))) for row in rows), default=0)
    return [
        f"{_word(row.get('model')):<{width}}  {_word(row.get('outcome')):<9}  {_line(row.get('gate'))}" for row in rows
    ]


def figure_lines(result: dict[str, Any]) -> list[str]:
    """The figures that changed, as the lines of DVC's Markdown table."""
    said = [line for line in str(result.get("metrics", "")).splitlines() if line.startswith("|")]
    return [_line(line, 2000) for line in said] if len(said) > 2 else []  # two lines are a head without rows


def page(result: dict[str, Any]) -> str:
    """The result in GitHub's Markdown: verdicts, figures, changed files, loss curves."""
    seconds = result.get("seconds")
    took = f", {seconds / 60:.1f} minutes" if _is_number(seconds) else ""
    parts = [f"Commit `{result['commit']}`{took}.", "", "## Verdicts"]
    parts += ["", *_fenced(verdict_lines(result) or ["no candidate"])]
    parts += ["", "## Figures that changed", ""]
    parts += [_table(line) for line in figure_lines(result)] or ["None."]
    parts += ["", "## Files", "", *_fenced(changed(result) or ["none"])]
    curves = result.get("curves")
    if isinstance(curves, dict) and curves:
        parts += ["", "## Loss curves", "", "Training loss, and validation loss where there are two lines."]
        for name, curve in sorted(curves.items()):
            parts += _chart(str(name), curve)
    return "\n".join(parts) + "\n"


def _verdicts(result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = result.get("verdicts")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _chart(name: str, curve: Any) -> list[str]:
    """A chart in Mermaid, which GitHub draws; nothing where the numbers are none."""
    series = [curve.get(kind) for kind in ("train", "validation")] if isinstance(curve, dict) else []
    lines = [
        "    line [" + ", ".join(f"{value:g}" for value in values) + "]"
        for values in series
        if isinstance(values, list) and values and all(_is_number(value) for value in values)
    ]
    steps = curve.get("steps") if isinstance(curve, dict) else None
    if not lines or not isinstance(steps, list) or len(steps) != 2 or not all(_is_number(step) for step in steps):
        return []
    axis = f'    x-axis "step" {steps[0]:g} --> {steps[1]:g}'
    return ["", "```mermaid", "xychart-beta", f'    title "{_word(name)}"', axis, '    y-axis "loss"', *lines, "```"]


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that can be drawn: not one beyond what a float holds, and not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _fenced(lines: list[str]) -> list[str]:
    """The lines as text: no Markdown, no HTML. The fence is longer than any in them."""
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + "text", *lines, fence]


def _table(line: str) -> str:
    for sign, shown in (("&", "&amp;"), ("<", "&lt;"), ("[", "&#91;"), ("`", "&#96;"), ("@", "&#64;")):
        line = line.replace(sign, shown)
    return line


def _line(text: object, most: int = 300) -> str:
    return "".join(char if char.isprintable() else "?" for char in " ".join(str(text).split())[:most])


def _word(text: object) -> str:
    return re.sub(r"[^\w .,:+-]", "?", _line(text, 100), flags=re.ASCII)
