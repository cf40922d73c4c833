"""Where a stage computes: bfloat16 only where the processor has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from densitywatch.devices import usable_precision
from densitywatch.params import DeviceParams


def test_bfloat16_is_left_aside_where_torch_does_not_use_avx512() -> None:
    code = "from densitywatch.devices import usable_precision; from densitywatch.params import DeviceParams;"
    code += "print(usable_precision('bf16-mixed', DeviceParams(accelerator='cpu')))"
    older = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=older, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "32-true"


def test_bfloat16_is_left_aside_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = DeviceParams(accelerator="cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert usable_precision("bf16-mixed", cpu) == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert usable_precision("bf16-mixed", cpu) == "bf16-mixed"
    assert usable_precision("32-true", cpu) == "32-true"
