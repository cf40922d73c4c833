"""What docs/how-to/your-photographs.md says of a few hundred pictures is what the rules do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from densitywatch.batches.flags import fewest_to_flag
from densitywatch.detector.stream import Past, decide
from densitywatch.params import load_params

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "your-photographs.md").read_text(encoding="utf-8")


def merged(params: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(params[key], value) for key, value in changes.items() if isinstance(value, dict)}
    return {**params, **changes, **both}


def test_the_pages_settings_leave_the_gate_its_pictures_and_flag_one_bad_picture_of_six(tmp_path: Path) -> None:
    block = re.search(r"Change these keys of `params.yaml`:\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    file = tmp_path / "params.yaml"
    whole = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), yaml.safe_load(block[1]))
    file.write_text(yaml.safe_dump(whole))
    params = load_params(file)
    data = params.data
    for pictures in (200, 300):
        assert round(pictures * data.gate) >= params.gate.least_images
        calibration = np.zeros(round(pictures * data.calibration))
        assert params.inbox.control == "batch"
        assert fewest_to_flag(6, params.detector.false_discovery_rate, calibration) == 1
    shares = (1 - data.validation - data.calibration - data.gate - data.test, data.validation, data.calibration)
    assert [round(200 * share) for share in (*shares, data.gate, data.test)] == [80, 30, 60, 20, 10]


def test_the_pages_table_has_the_numbers_of_the_batch_rule() -> None:
    table = re.search(r"\| calibration pictures \| (.*?)\n\n", PAGE, re.DOTALL)
    assert table is not None
    head, _, *rows = table[0].strip().splitlines()
    batches = [int(number) for number in re.findall(r"\d+", head)]
    for row in rows:
        calibration, *fewest = (int(number) for number in re.findall(r"\d+", row))
        assert fewest == [fewest_to_flag(batch, 0.1, np.zeros(calibration)) for batch in batches]


@pytest.mark.parametrize(("calibration", "flags"), [(60, False), (400, True)])
def test_the_streams_rule_flags_nothing_with_60_calibration_pictures(calibration: int, flags: bool) -> None:
    smallest = 1 / (calibration + 1)
    found = [int(decide([smallest] * n, calibration, 0.1, Past()).flags.sum()) for n in (1, 5, 10, 37, 60, 100, 400)]
    assert any(found) is flags
