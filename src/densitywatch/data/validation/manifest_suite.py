"""The checks on a dataset: the Great Expectations suite on the manifest, with limits from params.yaml."""

from __future__ import annotations

from typing import Any

from densitywatch.data.dataset import SPLITS, DatasetInfo
from densitywatch.data.decoding.images import MAX_PIXELS
from densitywatch.data.validation.expectations import Check
from densitywatch.params import Params

COLUMNS = ("path", "split", "row", "label", "group", "width", "height", "mode", "mean", "std", "min", "max", "sha256")
FINDINGS = {
    "intact": "BOOLEAN",
    "repeats": "BOOLEAN",
    "splits_of_image": "INTEGER",
    "splits_of_group": "INTEGER",
    "label_share": "REAL",
}
"""What a row of the manifest alone does not say, and their types: validate.find."""
MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16",
         "I;16B", "I;16L", "I;16N")  # fmt: skip
SOURCE_SHAPES = {"fashion_mnist": (28, 28, "L"), "mnist": (28, 28, "L")}


def suite(params: Params, info: DatasetInfo, gxe: Any) -> list[Check]:
    """The checks on the manifest of this dataset, the most basic ones first.

    `gxe` is the module great_expectations.expectations.
    """
    limits = params.expectations
    low, high = limits.mean_intensity
    checks = [
        Check(
            "schema",
            "the manifest has its columns in their order",
            gxe.ExpectTableColumnsToMatchOrderedList(column_list=["position", *COLUMNS, *FINDINGS]),
        ),
        *(
            Check(f"{column}_given", f"every image has its {name}", gxe.ExpectColumnValuesToNotBeNull(column=column))
            for column, name in (("path", "path"), ("sha256", "sha256 digest"), ("mean", "mean pixel value"))
        ),
        Check(
            "intact",
            "the arrays hold the pixels and labels that the manifest says",
            gxe.ExpectColumnValuesToBeInSet(column="intact", value_set=[True]),
        ),
        Check(
            "row_count",
            f"there are at least {limits.min_images:,} images",
            gxe.ExpectTableRowCountToBeBetween(min_value=limits.min_images),
        ),
        Check(
            "split_names",
            f"every image is in one of {', '.join(SPLITS)}",
            gxe.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS)),
        ),
        Check(
            "splits_filled",
            "no split is empty",
            gxe.ExpectColumnUniqueValueCountToBeBetween(column="split", min_value=len(SPLITS), max_value=len(SPLITS)),
        ),
        Check(
            "one_split",
            "no image is in two splits",
            gxe.ExpectColumnValuesToBeInSet(column="splits_of_image", value_set=[1]),
        ),
        Check(
            "groups_whole",
            "no group of images is in two splits",
            gxe.ExpectColumnValuesToBeInSet(column="splits_of_group", value_set=[1]),
        ),
        *_shape_checks(gxe, params.data.source),
        *(
            Check(
                f"intensity_{column}",
                f"the {name} pixel value of every image lies between 0 and 255",
                gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=255),
            )
            for column, name in (("min", "lowest"), ("max", "highest"))
        ),
        Check(
            "mean_intensity",
            f"the mean pixel value of all images lies between {low:g} and {high:g}",
            gxe.ExpectColumnMeanToBeBetween(column="mean", min_value=low, max_value=high),
        ),
        Check(
            "flat_images",
            f"at most {limits.max_flat_share:.2%} of the images are of one value only",
            gxe.ExpectColumnValuesToBeBetween(
                column="std", min_value=0, strict_min=True, mostly=1 - limits.max_flat_share
            ),
        ),
        Check(
            "duplicates",
            f"at most {limits.max_duplicate_share:.2%} of the images repeat another",
            gxe.ExpectColumnValuesToBeInSet(column="repeats", value_set=[False], mostly=1 - limits.max_duplicate_share),
        ),
    ]
    classes = len(info.class_names)
    if classes:
        checks += [
            Check(
                "label_set",
                f"every label is a number from 0 to {classes - 1}",
                gxe.ExpectColumnValuesToBeInSet(column="label", value_set=list(range(classes))),
            ),
            Check(
                "labels_filled",
                f"each of the {classes} labels occurs",
                gxe.ExpectColumnUniqueValueCountToBeBetween(column="label", min_value=classes, max_value=classes),
            ),
            Check(
                "label_balance",
                f"every label has at least {limits.min_label_share:.0%} of an even share of the images",
                gxe.ExpectColumnValuesToBeBetween(column="label_share", min_value=limits.min_label_share),
            ),
        ]
    return checks


def _shape_checks(gxe: Any, source: str) -> list[Check]:
    """Size and pixel format of the originals: known for the built-in grey sources, anything readable for others."""
    if source in SOURCE_SHAPES:
        width, height, mode = SOURCE_SHAPES[source]
        sizes, modes = {"width": (width, width), "height": (height, height)}, [mode]
    else:
        sizes, modes = {"width": (1, MAX_PIXELS), "height": (1, MAX_PIXELS)}, list(MODES)
    return [
        *(
            Check(
                column,
                f"the {column} of every original is {f'{low} pixels' if low == high else 'at least one pixel'}",
                gxe.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high),
            )
            for column, (low, high) in sizes.items()
        ),
        Check(
            "mode",
            f"the pixel format of every original is {modes[0] if len(modes) == 1 else 'one that can be read'}",
            gxe.ExpectColumnValuesToBeInSet(column="mode", value_set=modes),
        ),
    ]
