"""Files among images that are no images: of editors, macOS, network drives and writers of datasets.

They are known by their names alone, so nothing is opened. A source skips them and says so in one line. They are never
an image, a class, or a file that cannot be used.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from densitywatch.data.inputs.label_table import is_label_table

FOLDERS = frozenset(
    [
        "__macosx", ".appledouble", ".trashes", ".spotlight-v100", ".fseventsd", ".temporaryitems",  # macOS
        "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb", ".snapshot",  # network drives
        "$recycle.bin", "system volume information", "lost+found", ".thumbnails",  # Windows, Linux
        ".ipynb_checkpoints", "__pycache__", ".git", ".svn", ".hg", ".dvc", ".idea", ".vscode", ".cache",  # tools
    ]
)  # fmt: skip
FILES = frozenset(
    [
        ".ds_store", ".localized", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini",
        ".directory", ".nomedia", ".picasa.ini", "picasa.ini", "zbthumbnail.info",
        ".gitkeep", ".keep", ".gitignore", ".gitattributes", ".gitmodules", ".dvcignore",
        "_success", "_metadata", "_common_metadata",
        "labels.csv", "labels.jsonl", "metadata.csv", "metadata.jsonl", "classes.txt",
        "readme", "readme.md", "readme.txt", "license", "license.md", "license.txt", "dataset_infos.json",
    ]
)  # fmt: skip
"""Whole names, in lower case."""
PATTERNS = (
    ("._*", re.compile(r"\._")),
    ("*.crc", re.compile(r".*\.crc$", re.IGNORECASE)),
    (".Trash-*/", re.compile(r"\.trash-[^/]*/", re.IGNORECASE)),
    (".~lock.*#", re.compile(r"\.~lock\..*#$")),
    (".nfs*", re.compile(r"\.nfs[0-9a-f]{8,}$")),
    (".fuse_hidden*", re.compile(r"\.fuse_hidden")),
)
SIDE_CAR_ENDINGS = ("json", "txt", "cls", "xml", "xmp", "aae", "caption")
"""Endings of side-car files, which describe the picture next to them, as in a WebDataset tar."""
SHOWN = 6
MASKS = frozenset(["ground_truth", "ground-truth", "groundtruth"])
"""Folders of masks, which mark the defects in the other pictures, as in MVTec AD."""


def kind_of_clutter(name: str) -> str | None:
    """The kind of clutter of the path `name` below the source: `.DS_Store`, `._*`, `@eaDir/`; None for other files."""
    *folders, file = re.split(r"[/\\]", name)
    for folder in folders:
        if folder.lower() in FOLDERS:
            return f"{folder}/"
        for shown, pattern in PATTERNS:
            if shown.endswith("/") and pattern.match(f"{folder}/"):
                return shown
    if file.lower() in FILES:
        return file.strip()
    return next((shown for shown, pattern in PATTERNS if pattern.match(file)), None)


def kind_in_batch(name: str) -> str | None:
    """The same for a batch: masks are no pictures to score."""
    for piece in name.split("/")[:-1]:
        if piece.lower() in MASKS:
            return f"masks in {piece}/"
    return kind_of_clutter(name)


def kind_in_dataset(name: str) -> str | None:
    """The same for a dataset, in which tables of labels are no clutter."""
    folder, _, _ = name.rpartition("/")
    if is_label_table(name):
        return kind_in_batch(f"{folder}/-" if folder else "-")
    return kind_in_batch(name)


def is_clutter(name: str) -> bool:
    """Whether the file `name`, a path below the source, is clutter, whatever is next to it."""
    return kind_of_clutter(name) is not None


def is_side_car(name: str) -> bool:
    """Whether `name` has a side-car's ending; it is one when a picture has the same `sample_key`."""
    return name.rpartition(".")[2].lower() in SIDE_CAR_ENDINGS and "." in name.rpartition("/")[2]


def sample_key(name: str) -> str:
    """The path up to the first dot of the file's name: files of one key are one sample, as WebDataset has it."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def split_clutter(
    names: Iterable[str], kind_of: Callable[[str], str | None] = kind_of_clutter
) -> tuple[list[str], Counter[str]]:
    """`names` without clutter and side-cars, in their order, and the number left out of each kind."""
    skipped: Counter[str] = Counter()
    rest = []
    for name in names:
        kind = kind_of(name)
        if kind is None:
            rest.append(name)
        else:
            skipped[kind] += 1
    pictures = {sample_key(name) for name in rest if not is_side_car(name)}
    kept = []
    for name in rest:
        if is_side_car(name) and sample_key(name) in pictures:
            skipped[f"*.{name.rpartition('.')[2].lower()} next to a picture"] += 1
        else:
            kept.append(name)
    return kept, skipped


def skipped_line(skipped: Counter[str]) -> str | None:
    """One sentence about the files that were left out, or None."""
    if not skipped:
        return None
    kinds = [
        f"{kind!r} ({count:,})" if not kind.isprintable() else f"{kind} ({count:,})"
        for kind, count in skipped.most_common(SHOWN)
    ]
    more = [f"{len(skipped) - SHOWN} other kinds"] if len(skipped) > SHOWN else []
    total = skipped.total()
    files = (
        "1 file that is not an image by its name"
        if total == 1
        else f"{total:,} files that are not images by their names"
    )
    return f"skipped {files}: {', '.join([*kinds, *more])}"
