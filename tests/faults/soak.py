"""Hours of batches every few seconds against the servers of `make up`: nothing but the results may grow.

    make soak [HOURS=2] [EVERY=5]        after `make run`; so many hours, a batch every so many seconds

Works in a clone of this checkout in a temporary folder, with its models and its registry. The schedule looks into the
inbox every minute. A batch has 20 images of the test split; in every tenth batch there is a broken file, in every
twentieth two images of noise. Memory, open files and threads of every process, and the disk, are read every half
minute. Where control groups can be made (as root, in a container of your own), all processes together may have 6 GiB.

Writes var/soak/samples.csv and var/soak/soak.png, prints the table of docs/reliability.md, and fails when a server has
grown, a batch is missing, or a process is left over.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import yaml

from densitywatch import environment
from densitywatch.data.dataset import open_split
from densitywatch.data.encoding import png
from pipelines import service_processes

IMAGES = 20
EVERY = 30.0
"""Seconds between two readings."""
LIMIT = 6 << 30
"""Bytes of memory for all processes together."""
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
KEPT = ("models", "mlartifacts", "data/prepared", "mlflow.db")
"""What the clone has of a trained checkout."""
GROWN = 1.1
"""A server has grown when the last quarter of its readings lies above the second one by this factor."""
PATIENCE = 900.0
"""Seconds for the batches that wait at the end."""


@dataclass(frozen=True)
class Reading:
    """One role at one time: `server` is a service of `make up`, `run` all that scores, `folder` a part of the disk."""

    seconds: float
    role: str
    mib: float
    files: int = 0
    threads: int = 0


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def clone(root: Path) -> dict[str, str]:
    """A clone of this checkout with what it has trained, and the environment of its commands."""
    here = Path.cwd()
    subprocess.run(["git", "clone", "--quiet", "--shared", str(here), str(root)], check=True)
    for name in KEPT:
        source, target = here / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, target)
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["inbox"] |= {"cron": "* * * * *", "address": "data/inbox", "results": "data/outliers"}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    ports = {name: free_port() for name in ("PREFECT_PORT", "MLFLOW_PORT", "REPORTS_PORT")}
    path = os.pathsep.join([str(root / "src"), str(root)])
    return {**os.environ, **ports, "PYTHONPATH": path}


def limited() -> Path | None:
    """A control group with LIMIT that this process joins, and so all that it starts; None where none can be made."""
    for top in GROUPS:
        group = top / f"densitywatch-soak-{os.getpid()}"
        limit = "memory.limit_in_bytes" if (top / "memory.limit_in_bytes").exists() else "memory.max"
        with suppress(OSError):
            group.mkdir()
            (group / limit).write_text(str(LIMIT))
            (group / "cgroup.procs").write_text(str(os.getpid()))
            return group
    return None


def leave(group: Path) -> None:
    """Take this process out of the group and remove it."""
    with suppress(OSError):
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def drop(inbox: Path, number: int, images: np.ndarray, rng: np.random.Generator) -> None:
    """A batch in the inbox, complete at once."""
    folder = inbox / f"batch_{number:05d}"
    folder.mkdir(parents=True)
    for i, k in enumerate(rng.choice(len(images), IMAGES, replace=False)):
        (folder / f"image_{i:02d}.png").write_bytes(png(np.asarray(images[k])))
    if number % 10 == 0:
        (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    if number % 20 == 0:
        for i in range(2):
            (folder / f"noise_{i}.png").write_bytes(png(rng.integers(0, 256, images[0].shape, dtype=np.uint8)))
    (folder / "_SUCCESS").touch()


def read(root: Path, seconds: float) -> list[Reading]:
    """Every service, the runs together, and the disk outside of the inbox and the results."""
    found, servers = [], set()
    for entry in service_processes.noted(root):
        leader = service_processes.find(entry)
        if leader is None:
            raise SystemExit(f"soak: {entry['name']} has died after {seconds:.0f} s; see {entry['log']}")
        runs_apart = entry["name"] == "worker"  # whose children they are
        family = [leader] if runs_apart else [leader, *leader.children(recursive=True)]
        servers |= {one.pid for one in family}
        found.append(_together(family, entry["name"], seconds))
    runs = [one for one in service_processes.ours(root) if one.pid not in servers]
    if runs:
        found.append(_together(runs, "runs", seconds))
    batches = len(list((root / "data" / "outliers").glob("*/summary.json")))
    return [*found, Reading(seconds, "disk besides results", _mib(root)), Reading(seconds, "batches", batches)]


def _together(family: list[psutil.Process], role: str, seconds: float) -> Reading:
    mib, files, threads = 0.0, 0, 0
    for one in family:
        with suppress(psutil.Error):
            mib += one.memory_info().rss / (1 << 20)
            files += one.num_fds()
            threads += one.num_threads()
    return Reading(seconds, role, mib, files, threads)


def _mib(root: Path) -> float:
    """The checkout's disk but for the inbox and the results, which are meant to grow."""
    whole = 0
    for folder, names, files in os.walk(root):
        if folder == str(root / "data"):
            names[:] = [name for name in names if name not in ("inbox", "outliers")]
        for name in files:
            with suppress(OSError):
                whole += (Path(folder) / name).lstat().st_size
    return whole / (1 << 20)


def soak(root: Path, hours: float, every: float, samples: Path) -> tuple[list[Reading], int]:
    """Readings until every batch is scored, which go to `samples` as they come, and the number of batches."""
    environment_of = clone(root)
    python = [sys.executable, "-m"]
    subprocess.run([*python, "pipelines.services", "up"], cwd=root, env=environment_of, check=True)
    images = open_split(Path("data/prepared"), "test").images
    rng = np.random.default_rng(0)
    readings: list[Reading] = []
    number, started, next_batch, next_reading = 0, time.monotonic(), 0.0, 0.0
    file = samples.open("w", newline="", buffering=1)
    writer = csv.DictWriter(file, list(Reading.__dataclass_fields__))
    writer.writeheader()
    try:
        while (now := time.monotonic() - started) < 3600 * hours + PATIENCE:
            if now >= next_batch and now < 3600 * hours:
                number, next_batch = number + 1, next_batch + every
                drop(root / "data" / "inbox", number, images, rng)
            if now >= next_reading:
                next_reading += EVERY
                new = read(root, now)
                readings += new
                writer.writerows(asdict(one) for one in new)
                if now > 3600 * hours and readings[-1].mib >= number:
                    break
                if len(readings) % 100 < 8:
                    print(f"soak: {now / 60:.0f} minutes, {number} batches, {readings[-1].mib:.0f} scored", flush=True)
            time.sleep(0.2)
    finally:
        file.close()
        subprocess.run([*python, "pipelines.services", "down"], cwd=root, env=environment_of, check=False)
    return readings, number


def quarters(values: list[float]) -> tuple[float, float]:
    """The medians of the second and of the last quarter."""
    n = len(values)
    return statistics.median(values[n // 4 : max(n // 2, n // 4 + 1)]), statistics.median(values[3 * n // 4 :])


def table(readings: list[Reading], number: int, left: int) -> list[str]:
    """Prints the table; returns what is wrong."""
    by_role = defaultdict(list)
    for one in readings:
        by_role[one.role].append(one)
    wrong = []
    print("\n| what | second quarter | last quarter | ratio |\n|---|---|---|---|")
    for role, those in by_role.items():
        if role == "batches":
            continue
        for what in ("mib", "files", "threads"):
            values = [float(getattr(one, what)) for one in those]
            if not any(values):
                continue
            before, after = quarters(values)
            unit = {"mib": "MiB", "files": "open files", "threads": "threads"}[what]
            print(f"| {role}, {unit} | {before:,.0f} | {after:,.0f} | {after / before:.2f} |")
            if after > GROWN * before and role not in ("runs", "disk besides results"):
                wrong.append(f"{role}: {unit} grew from {before:,.0f} to {after:,.0f}")
    scored = int(by_role["batches"][-1].mib)
    print(f"\n{number} batches dropped, {scored} scored; {left} processes left over")
    if scored != number:
        wrong.append(f"{number - scored} batches are not scored")
    if left:
        wrong.append(f"{left} processes are left over")
    return wrong


def plot(readings: list[Reading], file: Path) -> None:
    """Memory, open files and threads of each role over the hours."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 7), sharex=True, layout="constrained")
    roles = [role for role in dict.fromkeys(one.role for one in readings) if role not in ("batches",)]
    servers = [role for role in roles if not role.startswith("disk")]
    panels = (("mib", "memory, MiB", servers), ("files", "open files", servers), ("threads", "threads", servers))
    for axis, (what, title, shown) in zip(axes.flat, panels, strict=False):
        for role in shown:
            those = [one for one in readings if one.role == role]
            style = {"linestyle": "none", "marker": ".", "markersize": 3} if role == "runs" else {}
            axis.plot([one.seconds / 60 for one in those], [getattr(one, what) for one in those], label=role, **style)
        axis.set(title=title, ylim=(0, None))
    axes.flat[0].legend(fontsize=8)
    for role, name in (("disk besides results", "disk besides inbox and results, MiB"), ("batches", "scored batches")):
        those = [one for one in readings if one.role == role]
        axes.flat[3].plot([one.seconds / 60 for one in those], [one.mib for one in those], label=name)
    axes.flat[3].set(title="disk, and batches", ylim=(0, None))
    axes.flat[3].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    figure.savefig(file, dpi=110)


def main(hours: float, every: float) -> None:
    environment.settle(os.environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped then as well
    out = Path("var") / "soak"
    out.mkdir(parents=True, exist_ok=True)
    group = limited()
    print(f"soak: {'at most 6 GiB in all' if group else 'no control group can be made here: no limit on memory'}")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "checkout"
        readings, number = soak(root, hours, every, out / "samples.csv")
        left = len(service_processes.left_over(root))
        states = {path.parent.name: json.loads(path.read_text()) for path in root.glob("data/outliers/*/summary.json")}
    if group is not None:
        leave(group)
    plot(readings, out / "soak.png")
    wrong = table(readings, number, left)
    short = [name for name, state in states.items() if state["scored"] < IMAGES]
    if short:
        wrong.append(f"{len(short)} batches have images without a score: {short[0]}")
    print(f"{out}/samples.csv, {out}/soak.png")
    if wrong:
        sys.exit("soak: " + "; ".join(wrong))


if __name__ == "__main__":
    given = [float(word) for word in sys.argv[1:]]
    main(given[0] if given else 2.0, given[1] if len(given) > 1 else 5.0)
