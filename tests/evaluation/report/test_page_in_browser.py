"""The report page as a reader's browser shows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from densitywatch.evaluation.evaluate import evaluate_model
from densitywatch.evaluation.report.report import write_report
from densitywatch.params import Params


def contrast(one: str, two: str) -> float:
    """WCAG's contrast ratio of two `rgb(r, g, b)` colours."""

    def luminance(colour: str) -> float:
        channels = [int(part) / 255 for part in colour[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_page_fits_a_phone_and_a_desk_in_light_and_dark(project: Path, params: Params, browser: Any) -> None:
    for name in params.models:
        evaluate_model(name, params, project)
    metrics = project / "metrics" / "vae.json"
    metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"mlflow_run_id": "0123456789abcdef" * 2}))
    address = write_report(params, project).as_uri()
    for width, scheme in ((390, "light"), (1200, "dark")):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        complaints: list[str] = []
        page.on("console", lambda message, complaints=complaints: complaints.append(message.text))
        page.goto(address)
        assert [url for url in asked if not url.startswith("data:")] == [address]
        assert complaints == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        colours = page.evaluate(
            """[...document.querySelectorAll('p, td, th, a, dt, dd, figcaption, li, small, summary')].map(
                element => [getComputedStyle(element).color, getComputedStyle(document.body).backgroundColor])"""
        )
        assert min(contrast(*pair) for pair in colours) >= 4.5, "WCAG AA"
        page.close()
