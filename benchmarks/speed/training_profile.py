"""Where a training step spends its time: by kind of operation and by line of the model's file, for every model.

    python benchmarks/speed/training_profile.py [MODEL ...]

One thread, the settings, batch size and precision of params.yaml, in the eager form: a compiled step has no lines of
its own. Every operation is timed as it runs. The gradient's operations count for the line whose gradient they are,
which autograd remembers in its anomaly mode. Prints Markdown tables.
"""

from __future__ import annotations

import linecache
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sizes import training_step
from torch.utils._python_dispatch import TorchDispatchMode

from densitywatch.devices import start_fabric
from densitywatch.params import DeviceParams, load_params

STEPS = 3
LINES = 3
# the first kind with a part of the operation's name counts
KINDS = {
    "convolutions": ("convolution",),
    "matrix products": ("mm.", "mv.", "dot."),
    "batch norm": ("batch_norm",),
    "activations": ("sigmoid", "tanh", "elu", "relu", "softplus", "softmax", "logsumexp", "threshold", "silu"),
    "copies and padding": ("copy", "clone", "cat", "stack", "pad", "fill", "zero", "index", "slice", "select"),
    "the rest": ("",),
}
OPTIMISER = "optimiser"
MODEL_LINE = re.compile(r'File "[^"]*/densitywatch/models/(\w+\.py)", line (\d+)')


class Timed(TorchDispatchMode):
    """Adds up the seconds of all operations by kind and by line of densitywatch/models."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        self.lines: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        started = time.process_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.process_time() - started
        line, optimiser = place()
        self.kinds[OPTIMISER if optimiser else kind_of(str(func))] += seconds
        if line is not None:
            self.lines[line] += seconds
        return result


def kind_of(operation: str) -> str:
    return next(kind for kind, parts in KINDS.items() if any(part in operation for part in parts))


def place() -> tuple[tuple[str, int] | None, bool]:
    """The innermost line of a model's file that an operation belongs to, and whether an optimiser asked for it."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "models" and path.parent.parent.name == "densitywatch":
            return (path.name, frame.f_lineno), False
        if "optim" in path.parts or frame.f_code.co_name == "clip_gradients":
            return None, True
        frame = frame.f_back  # type: ignore[assignment]
    node = torch._C._current_autograd_node()
    # what is the gradient of nothing, such as its summing up, has no line
    traceback = "" if node is None else "".join(node.metadata.get("traceback_", ()))
    found = MODEL_LINE.findall(traceback)
    return ((found[-1][0], int(found[-1][1])) if found else None), False


def profile(name: str, params: Any) -> Timed:
    """The sums of STEPS steps, after one that is not counted."""
    training = params.models[name].training
    fabric = start_fabric(DeviceParams(accelerator="cpu", threads=1), training.precision)
    _, step = training_step(
        name, params, fabric, batch=training.batch_size, size=params.data.size, channels=params.data.channels
    )
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        step()
        with Timed() as timed:
            for _ in range(STEPS):
                step()
    return timed


def main(names: list[str]) -> None:
    params = load_params()
    kinds = [*list(KINDS)[:-1], OPTIMISER, "the rest"]
    found = {name: profile(name, params) for name in names or params.models}
    print("| one step of | ms | " + " | ".join(kinds) + " |")
    print("|---" * (len(kinds) + 2) + "|")
    for name, timed in found.items():
        total = timed.kinds.total()
        shares = " | ".join(f"{timed.kinds[kind] / total:.0%}" for kind in kinds)
        print(f"| {name} | {1000 * total / STEPS:.0f} | {shares} |")
    print("\n| model | share | line | code |\n|---|---|---|---|")
    for name, timed in found.items():
        for (file, number), seconds in timed.lines.most_common(LINES):
            code = linecache.getline(str(models_folder() / file), number).strip().replace("|", "\\|")
            print(f"| {name} | {seconds / timed.kinds.total():.0%} | {file}:{number} | `{code}` |")


def models_folder() -> Path:
    from densitywatch import models

    return Path(models.__path__[0])


if __name__ == "__main__":
    main(sys.argv[1:])
