from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning_fabric
import pytest
import torch

from densitywatch import devices
from densitywatch.devices import usable_precision
from densitywatch.errors import ParamsError
from densitywatch.params import DeviceParams


@pytest.mark.slow
def test_bfloat16_is_left_aside_where_torch_does_not_use_avx512() -> None:
    code = "from densitywatch.devices import usable_precision; from densitywatch.params import DeviceParams;"
    code += "print(usable_precision('bf16-mixed', DeviceParams(accelerator='cpu')))"
    older = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    done = subprocess.run([sys.executable, "-c", code], env=older, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "32-true"


def test_bfloat16_is_left_aside_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = DeviceParams(accelerator="cpu")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert usable_precision("bf16-mixed", cpu) == "32-true"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert usable_precision("bf16-mixed", cpu) == "bf16-mixed"
    assert usable_precision("32-true", cpu) == "32-true"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert usable_precision("bf16-mixed", cpu) == "32-true"


def test_a_compiler_that_works_is_used() -> None:
    devices.compiler_problem.cache_clear()
    assert devices.compiler_problem() is None
    assert devices.should_compile(DeviceParams(accelerator="cpu"))


def test_a_device_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("no such device\nhere")

    monkeypatch.setattr(lightning_fabric, "Fabric", refuse)
    with pytest.raises(
        ParamsError, match=r"^device: accelerator 'cpu' with devices 1 cannot be used .*: no such device h"
    ):
        devices.start_fabric(DeviceParams(accelerator="cpu", devices=1, threads=1))


def test_a_batch_of_another_size_takes_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "compiled", lambda function: lambda x: function(x) + 100)
    doubled = devices.compiled_for_batches(lambda x: x * 2, size=3)
    assert doubled(torch.ones(3)).tolist() == [102, 102, 102]
    assert doubled(torch.ones(2)).tolist() == [2, 2]


ROWS_OF_250 = """
import sys, torch
from densitywatch import devices
compiled = devices.compiled(lambda x: x.exp().sum(1).log())  # 250 columns fill vectors of 8 and of 16 in different ways
x = torch.randn(3, 20, 250, generator=torch.Generator().manual_seed(0))
print([float((compiled(x) - x.exp().sum(1).log()).abs().max()) for _ in range(20)][-1] < 1e-5)
"""


@pytest.mark.slow
def test_kernels_of_another_processor_in_the_same_folder_are_not_used(tmp_path: Path) -> None:
    """As on a machine that has become a newer one: the same folder, first with the vectors of AVX2."""
    settings = {**os.environ, devices.KERNELS: str(tmp_path)}
    for other in ({"ATEN_CPU_CAPABILITY": "avx2"}, {}):
        command = [sys.executable, "-c", ROWS_OF_250]
        done = subprocess.run(command, env=settings | other, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr[-2000:]
    assert any(folder.name.startswith("AVX2") for folder in tmp_path.iterdir())


def test_every_kind_of_processor_has_a_folder_of_kernels_and_processes_of_a_run_share_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(devices.KERNELS, str(tmp_path))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for _ in range(2):  # the second time as in a process that was started by this one
        devices.keep_kernels_by_processor()
        assert os.environ[devices.KERNELS] == str(tmp_path / "AVX2")
    monkeypatch.delenv(devices.KERNELS)
    devices.keep_kernels_by_processor()
    assert Path(os.environ[devices.KERNELS]).name == "AVX2"
