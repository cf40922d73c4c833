"""Which figure is in which row of the comparison, and which is marked as the best."""

from __future__ import annotations

import pytest

from densitywatch.evaluation.report.comparison import ROWS, Row, best_of, bits, bits_note, compare, key, sampling

EXACT = {"bits_per_dim": 3.0, "bits_per_dim_stderr": 0.0042}
BOTH = {"elbo_bits_per_dim": 3.6, "iwae_bits_per_dim": 3.4}


def row(title: str) -> Row:
    return next(row for row in ROWS if row.title == title)


def test_an_exact_figure_goes_before_the_tightest_bound_and_that_before_the_elbo() -> None:
    assert bits(EXACT | BOTH) == 3.0
    assert bits(BOTH) == 3.4
    assert bits({"elbo_bits_per_dim": 3.6}) == 3.6
    assert bits({}) is None


def test_a_bound_is_named_and_a_standard_error_is_shown() -> None:
    assert bits_note(EXACT) == "± 0.004"
    assert bits_note({"iwae_bits_per_dim": 3.4, "iwae_bits_per_dim_stderr": 0.01}) == "importance bound\n± 0.010"
    assert bits_note({"iwae_bits_per_dim": 3.4, "iwae_images": 1000}) == "importance bound\n1,000 images"
    assert bits_note({"elbo_bits_per_dim": 3.6}) == "ELBO, a bound"
    assert bits_note({}) == ""


@pytest.mark.parametrize(("title", "best"), [("FID (our features)", 2.0), ("Precision", 9.0), ("Parameters", None)])
def test_the_best_is_the_lowest_or_the_highest_as_the_row_says(title: str, best: float | None) -> None:
    chosen = row(title)
    names = {"FID (our features)": "fid", "Precision": "precision", "Parameters": "parameters"}
    assert best_of(chosen, [{names[title]: 2.0}, {names[title]: 9.0}, {}]) == best


def test_one_figure_alone_is_not_called_the_best() -> None:
    assert best_of(row("FID (our features)"), [{"fid": 2.0}, {}]) is None


def test_figures_of_different_image_sizes_are_not_compared_where_the_size_matters() -> None:
    small, large = {"bits_per_dim": 3.0, "size": 28}, {"bits_per_dim": 2.0, "size": 32}
    assert best_of(row("bits/dim"), [small, large]) is None
    assert best_of(row("bits/dim"), [small, large | {"size": 28}]) == 2.0


def test_figures_of_different_numbers_of_samples_have_no_best() -> None:
    few, many = {"fid": 13.1, "quality_images": 1000}, {"fid": 2.2, "quality_images": 10000}
    assert best_of(row("FID (our features)"), [few, many]) is None
    assert best_of(row("FID (our features)"), [few, many | {"quality_images": 1000}]) == 2.2
    cells = dict((line.title, cells) for line, cells in compare({"a": few, "b": many}))["FID (our features)"]
    assert (cells["a"].note, cells["b"].note) == ("1,000 samples", "10,000 samples")


def test_linear_probes_are_compared_at_the_number_of_labels_that_all_were_given() -> None:
    slow = {"linear_probe_accuracy": 0.85, "linear_probe_labels": 10000}
    fast = {"linear_probe_accuracy": 0.86, "linear_probe_labels": 51000, "linear_probe_accuracy_10000": 0.84}
    cells = dict((line.title, cells) for line, cells in compare({"slow": slow, "fast": fast}))["Linear probe"]
    assert [(cells[name].text, cells[name].note, cells[name].best) for name in ("slow", "fast")] == [
        ("85.0 %", "10,000 labels", True),
        ("84.0 %", "10,000 labels", False),
    ]
    other = fast | {"linear_probe_labels": 500}
    assert best_of(row("Linear probe"), [slow, other]) is None


def test_only_rows_that_a_model_fills_are_in_the_table() -> None:
    table = compare({"a": {"fid": 2.0}, "b": {"fid": 3.0, "parameters": 1234}})
    assert [line.title for line, _ in table] == ["FID (our features)", "Parameters"]
    fid, parameters = (cells for _, cells in table)
    assert (fid["a"].text, fid["a"].best, fid["b"].best) == ("2", True, False)
    assert parameters["a"].empty
    assert parameters["b"].text == "1,234"


def test_a_sampling_time_is_one_over_the_rate() -> None:
    assert sampling({"sample_images_per_second": 4.0}) == 0.25
    assert sampling({}) is None
    assert key("fid")({"fid": 1.0}) == 1.0
