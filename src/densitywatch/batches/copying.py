"""A batch's results, copied to an address of fsspec: s3://bucket/results/monday, for example.

summary.json is written last, so whoever waits for it finds the other files of the same results. The results stay on
this machine too: a store has no rename that would put a whole folder in the place of another.
"""

from __future__ import annotations

from pathlib import Path

from densitywatch.batches.results_folder import FILES, SUMMARY
from densitywatch.data.inputs.source import without_secrets
from densitywatch.errors import DataError
from densitywatch.text import one_line


def copy_results(folder: Path, address: str) -> str:
    """Copy the results in `folder` to the folder `address`; returns the address as it may be shown.

    Raises DataError when it cannot be written.
    """
    import fsspec

    shown = without_secrets(address).rstrip("/")
    names = sorted((path.name for path in folder.iterdir() if path.name in FILES), key=lambda name: name == SUMMARY)
    try:
        filesystem, top = fsspec.core.url_to_fs(address.rstrip("/"))
        filesystem.makedirs(top, exist_ok=True)
        for name in names:
            filesystem.put_file(str(folder / name), f"{top}/{name}")
    except Exception as error:  # every file system behind fsspec has its own exceptions
        raise DataError(f"{shown}: cannot be written ({one_line(error)}); the results are in {folder}") from None
    return shown
