"""The page of the files that are written, made from dvc.yaml, the tables' schemas and metrics/.

The meaning of a column or key is in a table here; one without a meaning, or a meaning without one, is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from docs.scripts.from_code import ROOT, cell, kinds

SCORES = {
    "path": "where the file is in the source",
    "sha256": "of its bytes; null where it could not be read",
    "status": "`scored` or `quarantined`",
    "reason": "why it was quarantined, or what was changed to fit the detector",
    "bits_per_dim": "of the exact density model",
    "score": "higher is more outlying",
    "p_value": "small is outlying: the share of calibration images at least as outlying, the image itself counted in",
    "outlier": "whether the batch calls it an outlier",
    "label": "with `--labels`: the most probable label",
    "label_probability": "with `--labels`: of that label, by Bayes' rule",
    "label_p_value": "with `--labels`: small says that the image belongs to no class; the share of calibration images"
    " with the same given label that are at least as outlying; null where those images are not here",
}
SUMMARY = {
    "batch": "the source as it was given, without secrets",
    "files": "files in the batch",
    "scored": "files that have a score",
    "quarantined": "files that could not be used",
    "skipped": "files that are no images by their names; they have no row",
    "skipped_kinds": "the same by kind",
    "outliers": "images called outliers",
    "changed_to_fit": "images that were resized, turned or changed in colour to fit the detector",
    "false_discovery_rate": "the rate that was asked for",
    "false_alarm_rate": "the detector's rate for single images",
    "no_class": "with `--labels`: images whose `label_p_value` is at most `false_alarm_rate`",
    "labels_too_small": "with `--labels`: labels with too few calibration images for that rate, in a sentence, or null",
    "median_p_value": "about 0.5 for a batch like the calibration images; lower is more surprising",
    "drift_p_value": "whether the batch as a whole is like the calibration images",
    "drift_stream": "the stream that the batch is in; this key and the seven below are for the inbox alone",
    "drift_alarm": "whether the inbox's stream has moved",
    "drift_evidence": "evidence that it has; an alarm at 1 / `inbox.drift_alarm`",
    "drift_batches": "batches in the stream so far",
    "drift_alarm_batch": "the batch that raised the alarm",
    "drift_since": "the batch that the change most likely began with",
    "drift_moved": "what moved most: `calibration`, or a measure and its direction",
    "drift_looked": "false where drift looked at earlier files of the same name and not at these",
    "promise": "what the flags promise, in words",
    "control": "the rule in force: `batch` or `stream`",
    "level": "by the batch rule, the rate; in a stream, the budget before this batch, in false alarms",
    "stream_batch": "the batch's number in its stream, from 1",
    "stream_flagged_before": "images that the stream had flagged before it",
    "fewest_to_flag": "how many images less usual than every calibration image it takes to flag any; null: no number",
    "takes": "ways to be flagged: this many images of the batch, or of a part of it, at or below this p-value",
    "to_be_flagged": "what it takes, in words",
    "content": "a digest of names and contents",
    "identity": "what decides the results: source, detector, rates",
    "quarantine_reasons": "how many files for each reason",
    "histogram": "the scores of the batch and of the calibration images in bins",
}
ASSESSMENT = {
    "folder": "what was assessed",
    "detector": "a digest of the detector",
    "size": "pixels a side of the images that it takes; figures of pixels are of images of this size",
    "channels": "1 grey, 3 RGB",
    "resize": "how images and masks are brought to that size",
    "calibration_images": "number of them; no p-value is below 1 / (this + 1)",
    "good": "`images`, `quarantined`, `scores`, and `false_alarms` at 1 and 5 %",
    "kinds": "one entry for each kind of bad images, the worst first; its keys are below",
    "all": "the figures of all bad images together",
    "quarantined": "[file, reason] of every file that could not be scored",
    "masks_refused": "[mask, reason] of every mask that could not be used",
    "left_out": "[name, reason] of what lies next to the kinds and is none",
    "skipped": "files that are no images by their names",
    "notes": "what limits the figures, in sentences",
}
ASSESSED_KIND = {
    "kind": "the name of its folder",
    "images": "images with a score; with 0 there are no figures",
    "auroc": "[AUROC of the images, low, high]: the middle 95 % of bootstrap resamples",
    "found": "at 1 and 5 %: `share` with a p-value of at most `level`, and its exact binomial interval of 95 %, `low`"
    " to `high`; where calibration images are too few, `share` is null and `words` say what it takes. `false_alarms`"
    " has the same of good images, with `expected`, where 95 of 100 such shares lie when the promise holds, and"
    " `above`",
    "floors": "`name` and `auroc` of mean intensity and of WebP length, each in its better direction",
    "below_floor": "the floors that have a higher AUROC than the detector",
    "quarantined": "number of files that could not be scored",
    "masks": "number of masks that were `used`, `unusable` and, of those used, `empty`",
    "scores": "`path`, `score` and `p_value` of each image, from the lowest score up",
    "pixel_auroc": "where there are masks and a map: the AUROC of its pixels",
    "pro": "the same: overlap with the marked regions up to 30 % false positives (Bergmann et al. 2019)",
    "regions": "number of marked regions",
}
METRICS = {
    "accuracy": "share of test images whose label is found",
    "accuracy_at_90_coverage": "the same among the 90 % that the model is surest of",
    "bits_per_dim": "exact, of the discrete 8-bit image",
    "bits_per_dim_given_label": "the same given the image's label",
    "bits_per_dim_stderr": "standard error over the test images",
    "code_computed_bits_per_dim": "the computed figure of the images that were coded",
    "code_file_bits_per_dim": "size of the coded file, which another process decoded byte for byte",
    "code_images": "number of images that were coded",
    "code_png_bits_per_dim": "the same images as PNG",
    "code_webp_bits_per_dim": "the same images as lossless WebP",
    "code_xz_bits_per_dim": "the same images under xz",
    "coverage": "share of test images with a sample near them",
    "coverage_of_real": "the same of as many training images",
    "density": "samples near each test image, over what test images themselves would give",
    "density_of_real": "the same of as many training images",
    "elbo_bits_per_dim": "an upper bound on bits/dim (minus the ELBO)",
    "elbo_bits_per_dim_stderr": "standard error over the test images",
    "elbo_kl_bits_per_dim": "the KL term of the ELBO",
    "elbo_reconstruction_bits_per_dim": "the reconstruction term of the ELBO",
    "fid": "Fréchet distance in this project's own feature space; compares with nothing published",
    "fid_floor": "the same of as many training images: what a perfect sampler gets, up to chance",
    "fid_floor_of_more": "the same of `more_images` training images",
    "fid_of_more": "`fid` of all samples, for a model that draws more than `quality_images`",
    "gan_test_accuracy": "share of samples in which the classifier sees the label that was asked for",
    "gan_train_accuracy": "test accuracy of a classifier that is trained on samples alone",
    "gan_train_images": "samples that this classifier learned from",
    "gradient_ratio": "gradient of the non-saturating loss over that of minimax while the discriminator wins",
    "images_per_second": "training speed on the machine that trained",
    "inception_fid": "the published FID, with `evaluate.quality.inception_weights`",
    "inception_images": "samples of that figure",
    "interpolation_accuracy": "share of half-way images between two of one class that are of that class",
    "iwae_bits_per_dim": "an upper bound on bits/dim, tighter than the ELBO's (importance-weighted)",
    "iwae_bits_per_dim_stderr": "standard error over the test images",
    "iwae_images": "images that this bound was taken on",
    "iwae_samples": "samples of the bound",
    "kid": "kernel distance in the same feature space",
    "latent_arithmetic_accuracy": "share of latent sums that reach the intended class, for models without labels",
    "latent_brightness_accuracy": "share of latent sums under one label that are brighter than the label's median",
    "linear_probe_accuracy": "of a linear classifier on the model's features, all labels",
    "linear_probe_labels": "how many labels that was",
    "more_images": "samples of `fid_of_more`",
    "mlflow_run_id": "the training's run",
    "neighbour_ratio": "distance of samples to training images over that of test images: near 0 is memorised",
    "no_class_rate": "until 0.1: share of test images that are said to have no class; now in metrics/outliers.json",
    "no_class_target_rate": "until 0.1: the share that was asked for",
    "parameters": "number of weights",
    "precision": "share of samples that lie among the test images",
    "precision_of_real": "the same of as many training images",
    "quality_images": "samples of the sample-quality figures, the same number for every model",
    "recall": "share of test images that lie among the samples",
    "recall_of_real": "the same of as many training images",
    "reconstruction_mse": "mean squared error of reconstructions, pixels from 0 to 1",
    "sample_images_per_second": "drawing speed, many at once",
    "sample_seconds": "time for a batch of samples",
    "score_images_per_second": "scoring speed",
    "size": "pixels a side that the model sees",
    "train_seconds": "training time on the machine that trained",
}


def page() -> str:
    """What each stage writes, and what is in the files that people and programs read."""
    from densitywatch.batches.chunks import RESULTS
    from densitywatch.batches.results import OUTLIER
    from densitywatch.batches.results_folder import Summary

    columns = {field.name: str(field.type) for field in [*RESULTS, OUTLIER]}
    parts = [
        "---\nhide: [toc]\n---\n\n# Files\n",
        "Made from `dvc.yaml`, the code and `metrics/`. The dataset's folder is described in [Data](data.md).\n",
        "## What each stage writes\n",
        "In the order in which they run; `foreach` stages once for each model.\n",
        "| stage | what | command | writes |\n|---|---|---|---|",
    ]
    for name, stage in stages():
        outs = [
            next(iter(out)) if isinstance(out, dict) else out
            for out in [*stage.get("outs", []), *stage.get("metrics", [])]
        ]
        written = "<br>".join(f"`{placeholders(out)}`" for out in outs)
        command = placeholders(stage["cmd"])
        command = f"`{command}`" if len(command) < 60 else "copies the weights"
        parts.append(f"| `{name}` | {placeholders(stage['desc'])} | {command} | {written} |")
    parts.append("\n## scores.parquet\n\nIn `data/outliers/<batch>/`, one row for every input file, none missing.\n")
    parts.append(described(columns, SCORES, "column", "type"))
    parts.append("\n## summary.json\n\nNext to it.\n")
    keys = {name: kinds(field.annotation) for name, field in Summary.model_fields.items()}
    plain = {"false_alarm_rate": "number", "median_p_value": "number"}
    plain |= {"no_class": "whole number", "labels_too_small": "text or null"}
    parts.append(described(keys | plain, SUMMARY, "key", "type"))
    parts.append(
        "\n## assessment.json\n\nIn `data/assessments/<name>/`, next to `assessment.html`: `densitywatch assess`.\n"
    )
    parts.append(meanings(ASSESSMENT))
    parts.append("\nOf each kind:\n")
    parts.append(meanings(ASSESSED_KIND))
    parts.append(
        "\n## metrics/MODEL.json\n\nFlat; each key only where it applies. `dvc metrics show` lists all, `dvc metrics"
        " diff` compares.\n"
    )
    parts.append("| key | what it is | in |\n|---|---|---|")
    for key, models in sorted(metric_keys().items()):
        parts.append(f"| `{key}` | {METRICS[base_key(key)]} | {', '.join(models)} |")
    parts.append(
        "\n`linear_probe_accuracy_N` is the probe's accuracy with N labels.\n\n## metrics/outliers.json\n\n"
        "By kind of outlier, with the lowest (`min`) or highest (`max`): `power_at_5` and `power_at_1`, the share that"
        " the deployed rule finds where 5 or 1 % of a batch are outliers; `false_alarms_at_5` and `false_alarms_at_1`,"
        " the share of normal images among all that it flags there; `auroc`, `aupr`, `fpr_at_95_tpr` and"
        " `tpr_at_1_fpr`; AUROC with declared transformations, with untrained networks and without any;"
        " `auroc_gain_over_untrained` and `auroc_gain_over_no_network`, in mean AUROC, each with the ends of its"
        " interval of 95 %. `power_at_5_percent_outliers` and its like are of the batch rule: averages over"
        " calibration sets that are drawn anew, with the false-discovery rate realised. `panel_images`: images of each"
        " kind, at most; fewer than `detector.panel_images` where large pictures would fill the memory. Where accepted"
        " images of drifted batches have replaced the calibration images, figures that rank test images among them are"
        " left out.\n"
    )
    return "\n".join(parts) + "\n"


def described(given: Mapping[str, str], words: Mapping[str, str], first: str, second: str) -> str:
    if set(given) != set(words):
        raise ValueError(f"docs/scripts/files_page.py: describe {sorted(set(given) ^ set(words))}")
    rows = [f"| `{name}` | {cell(given[name])} | {text} |" for name, text in words.items()]
    return f"| {first} | {second} | what it is |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def meanings(words: Mapping[str, str]) -> str:
    rows = [f"| `{name}` | {text} |" for name, text in words.items()]
    return "| key | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"


def metric_keys() -> dict[str, list[str]]:
    """Every key of metrics/<model>.json with the models that have it."""
    names = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["models"]
    found: dict[str, list[str]] = {}
    for name in names:
        file = ROOT / "metrics" / f"{name}.json"
        if file.is_file():
            for key in json.loads(file.read_text(encoding="utf-8")):
                found.setdefault(key, []).append(name)
    unknown = [key for key in found if base_key(key) not in METRICS]
    if unknown:
        raise ValueError(f"docs/scripts/files_page.py: METRICS lacks {unknown}")
    return found


def base_key(key: str) -> str:
    return re.sub(r"^(linear_probe_accuracy)_\d+$", r"\1", key)


def stages() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        yield (f"{name}@…" if "foreach" in stage else name), stage.get("do", stage)


def placeholders(text: str) -> str:
    return text.replace("${key}", "MODEL").replace("${item}", "MODEL")
