"""A batch's results, copied to an address of fsspec: s3://bucket/results/monday, for example.

An earlier copy's summary.json is removed first and the new one is written last, so whoever waits for it finds all files
of the same results and no others. The results stay on
this machine too: a store has no rename that would put a whole folder in the place of another.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from densitywatch.batches.publishing import held
from densitywatch.batches.results_folder import FILES, SUMMARY
from densitywatch.data.inputs.source import without_secrets
from densitywatch.errors import DataError
from densitywatch.text import one_line


def copy_results(folder: Path, address: str) -> str:
    """Copy the results in `folder` to the folder `address`; returns the address as it may be shown.

    No other job changes the results meanwhile. Raises DataError when they are gone or the address cannot be written.
    """
    import fsspec

    shown = without_secrets(address).rstrip("/")
    with held(folder):
        names = {name for name in FILES if (folder / name).is_file()}
        if SUMMARY not in names:
            raise DataError(f"{folder}: its results are not there any more; nothing was copied to {shown}")
        try:
            filesystem, top = fsspec.core.url_to_fs(address.rstrip("/"))
            filesystem.makedirs(top, exist_ok=True)
            for name in [SUMMARY, *sorted(FILES - names)]:  # of an earlier copy
                with suppress(FileNotFoundError):
                    filesystem.rm_file(f"{top}/{name}")
            for name in [*sorted(names - {SUMMARY}), SUMMARY]:
                filesystem.put_file(str(folder / name), f"{top}/{name}")
        except Exception as error:  # every file system behind fsspec has its own exceptions
            raise DataError(f"{shown}: cannot be written ({one_line(error)}); the results are in {folder}") from None
    return shown
