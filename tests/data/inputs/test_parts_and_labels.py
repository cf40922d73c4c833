"""What a dataset folder means by the way it is arranged: parts, labels, strays."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densitywatch.data.inputs.parts_and_labels import Arrangement, arrange, strays_of
from densitywatch.errors import DataError

FAMILY = "👨\u200d👩\u200d👧"
NFC, NFD = (unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD"))


def many(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:03d}.png" for number in range(count)]


def loose(count: int) -> list[str]:
    return [f"{number:03d}.png" for number in range(count)]


def classes(parts: str = "", count: int = 20, names: tuple[str, ...] = ("ok", "nok")) -> list[str]:
    return [path for name in names for path in many(f"{parts}{name}", count)]


def told(found: Arrangement) -> set[tuple[str, str | None]]:
    """The pairs of part and label that occur."""
    pairs = enumerate(zip(found.parts, found.labels, strict=True))
    return {pair for index, pair in pairs if index not in found.left_out}


def refusal(places: list[str], given: list[str | None] | None = None) -> str:
    with pytest.raises(DataError) as error:
        arrange(places, given)
    sentence = str(error.value)
    assert sentence.startswith("data.address: ")
    assert "\n" not in sentence
    return sentence


def test_folders_are_labels_and_loose_images_have_none() -> None:
    found = arrange(["a/1.png", "b/2.png", "b/deep/3.png"])
    assert found.labels == ["a", "b", "b"]
    assert found.parts == ["", "", ""]
    assert arrange(loose(9)).labels == [None] * 9
    assert arrange(many("good", 80)).labels == ["good"] * 80, "one class is fine"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train", "train"), ("Train", "train"), ("TRAIN", "train"), ("training", "train"), ("val", "validation"),
        ("Valid", "validation"), ("VALIDATION", "validation"), ("test", "test"), ("Test", "test"), ("testing", "test"),
    ],
)  # fmt: skip
def test_a_top_folder_named_after_a_part_is_a_part_in_any_case_and_never_a_label(name: str, part: str) -> None:
    beside = "train" if part != "train" else "test"
    found = arrange([*classes(f"{beside}/"), *classes(f"{name}/")])
    assert told(found) == {(kind, label) for kind in (beside, part) for label in ("ok", "nok")}
    assert told(arrange([*many(beside, 9), *many(name, 9)])) == {(beside, None), (part, None)}
    alone = arrange(classes(f"{name}/"))
    assert {label for _, label in told(alone)} == {"ok", "nok"}
    assert arrange(many(name, 9)).labels == [None] * 9


def test_parts_without_a_train_part_are_split_again_and_that_is_said() -> None:
    found = arrange([*classes("val/"), *classes("Test/")])
    assert set(found.parts) == {""}
    assert found.remarks == ["there is val, Test and no train: the images are split again"]


def test_images_outside_of_the_parts_are_left_out_when_few_and_stop_when_many() -> None:
    places = [*classes("train/"), *classes("test/"), "preview.png", "extra/1.png"]
    assert arrange(places).left_out == {80: "in none of the parts train, test", 81: "in none of the parts train, test"}
    sentence = refusal([*places, *many("other/a", 20)])
    assert (
        "train, test are parts of the data, and 22 of 102 images are in none (the first is 'preview.png')" in sentence
    )
    assert sentence.endswith("move them into a part or away")


@pytest.mark.parametrize("around", ["mydata", "export/2026 (1)", "Train set"])
def test_a_folder_around_everything_is_looked_through(around: str) -> None:
    for inner in (classes(), [*classes("train/"), *classes("Val/"), *classes("test/")], [*classes(), "stray.png"]):
        bare, wrapped = arrange(inner), arrange([f"{around}/{place}" for place in inner])
        assert wrapped == bare
    assert told(arrange([*[f"{around}/{place}" for place in classes()], "cover.jpg"])) == {("", "ok"), ("", "nok")}


def test_an_archives_own_name_around_loose_images_is_no_label() -> None:
    assert told(arrange(many("photos", 9), wrapper="photos")) == {("", None)}
    assert told(arrange(many("good", 9), wrapper="photos")) == {("", "good")}
    assert told(arrange(classes(), wrapper="ok")) == {("", "ok"), ("", "nok")}


def test_loose_images_next_to_class_folders_are_left_out_by_name_up_to_a_tenth() -> None:
    found = arrange([*classes(), *loose(4)])
    assert told(found) == {("", "ok"), ("", "nok")}
    assert found.left_out == dict.fromkeys(range(40, 44), "outside of the class folders: it has no label")
    sentence = refusal([*classes(), *loose(5)])
    assert "5 of 45 are in no class folder (the first is '000.png')" in sentence
    assert sentence.endswith("give each a class folder, or put all of them into one")


def test_a_few_images_in_a_folder_next_to_loose_ones_are_left_out_too() -> None:
    found = arrange([*loose(30), *many("thumbs", 3)])
    assert told(found) == {("", None)}
    assert set(found.left_out) == {30, 31, 32}
    assert "in the folder 'thumbs'" in found.left_out[30]


@pytest.mark.parametrize(("count", "strays"), [(1, 0), (3, 0), (4, 1), (19, 1), (20, 2), (81, 8), (1000, 100)])
def test_of_fewer_than_four_images_none_is_a_stray(count: int, strays: int) -> None:
    assert strays_of(count) == strays


def test_strays_are_counted_in_each_part() -> None:
    found = arrange([*classes("train/"), "train/cover.png", *classes("test/"), "test/cover.png"])
    assert sorted(found.left_out) == [40, 81]
    many_in_test = [*classes("train/", 100), *classes("test/"), *[f"test/{name}" for name in loose(8)]]
    assert "of the part test, 8 of 48 are in no class folder" in refusal(many_in_test)


def test_a_test_part_without_labels_is_left_out_and_cut_from_train() -> None:
    found = arrange([*classes("train/"), *many("test", 20)])
    assert told(found) == {("train", "ok"), ("train", "nok")}
    assert len(found.left_out) == 20
    assert found.remarks == [
        "the part test has no labels and train has: its 20 images are left out, and test is cut from train"
    ]


def test_classes_that_train_does_not_have_are_not_taken_for_normal_images() -> None:
    found = arrange([*many("train/good", 60), *many("test/good", 15), *many("test/broken", 15), *many("test/bent", 4)])
    assert told(found) == {("train", "good"), ("test", "good")}
    assert sorted(found.left_out) == list(range(75, 94))
    assert found.left_out[75] == "of the class 'broken', which train does not have"
    (remark,) = found.remarks
    assert "'bent' (4), 'broken' (15)" in remark
    assert "are not taken for normal images" in remark
    only = arrange([*many("train/good", 60), *many("test/broken", 15)])
    assert told(only) == {("train", "good")}
    assert only.remarks[1] == "nothing else is in the part test: it is cut from train"


def test_a_train_part_without_class_folders_next_to_a_test_part_with_them_stops() -> None:
    sentence = refusal([*many("train", 60), *many("test/good", 15), *many("test/broken", 15)])
    assert "the part test has class folders ('broken', 'good') and train has none" in sentence
    assert "move the images of train into the folder of their class" in sentence


def test_several_datasets_side_by_side_are_not_mixed() -> None:
    sentence = refusal(
        [*classes("bottle/train/"), *classes("bottle/test/"), *classes("cable/train/"), *classes("cable/test/")]
    )
    assert "the folders 'bottle', 'cable' each hold parts train and test; give one of them" in sentence
    assert "snapshots/" in refusal([*many("blobs", 9), *many("snapshots/abc/ok", 9)])


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Good", "good"), "'Good' and 'good'"),
        (("ok", " ok", "ok "), "'ok' and ' ok' and 'ok '"),
        ((NFC, NFD), f"{NFC!a} and {NFD!a}"),
        (("ok", "ok\u200d"), "'ok' and 'ok\\u200d'"),
        (("ÄRGER", "ärger"), "'ÄRGER' and 'ärger'"),
    ],
)
def test_classes_that_a_person_takes_for_one_are_an_error_that_names_them(names: tuple[str, ...], shown: str) -> None:
    sentence = refusal(classes(names=names))
    assert (
        f"the classes {shown} differ in case, blanks at the ends or Unicode form only; give them one name" in sentence
    )
    assert shown in refusal(
        [*many(f"train/{names[0]}", 9), *many(f"test/{names[1]}", 9)][:9] + classes("test/", 9, names)
    )


def test_parts_that_differ_in_case_only_are_an_error_too() -> None:
    assert "the folders 'Train' and 'train' differ in case" in refusal([*classes("Train/"), *classes("train/")])


@pytest.mark.parametrize(
    "label", ["..", ".hidden", "a\nb", "a\x1b[31mb", "back\\slash", " ", "\u200d", "x" * 101, "\u202egnp"]
)
def test_a_class_folder_whose_name_is_no_label_stops_with_its_name(label: str) -> None:
    sentence = refusal([f"{label}/1.png", "fine/2.png"])
    assert "cannot be a label; rename it" in sentence
    assert repr(label[:100]) in sentence


@pytest.mark.parametrize(
    "label",
    [
        "Größe 3",
        "<script>",
        "a b",
        "犬",
        "it's",
        FAMILY,
        "👩\u200d🔬",
        "❤\ufe0f",
        "#hash",
        "50% off, a=b",
        "می\u200cخواهم",
    ],
)
def test_odd_but_printable_labels_are_labels(label: str) -> None:
    assert arrange([f"{label}/1.png", "fine/2.png"]).labels == [label, "fine"]


def test_a_class_with_just_one_image_is_named_in_one_line() -> None:
    found = arrange([*classes(), "rare/1.png"])
    assert told(found) == {("", "ok"), ("", "nok"), ("", "rare")}
    assert found.remarks == [
        "classes with too few images to be in every split: 'rare' (1); add images or move the folder away"
    ]


def test_labels_of_a_table_count_instead_of_the_folders() -> None:
    places = many("images", 20)
    labels: list[str | None] = ["ok" if number % 2 else "nok" for number in range(20)]
    assert arrange(places, labels).labels == labels
    assert arrange(places, [*labels[:19], None]).left_out == {19: "not in the table of labels: it has no label"}
    sentence = refusal(places, [*labels[:15], *[None] * 5])
    assert "5 of 20 are not in the table of labels (the first is 'images/015.png')" in sentence


@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from(
                ["", "a/", "b/", "train/", "train/a/", "train/b/", "test/a/", "test/c/", "val/a/", "x/train/a/"]
            ),
            st.sampled_from([None, None, "a", "b"]),
        ),
        min_size=1,
        max_size=6,
        unique=True,
    ),
    counts=st.lists(st.integers(1, 60), min_size=6, max_size=6),
    tabled=st.booleans(),
)
def test_a_place_that_stands_for_several_images_is_as_these_images(
    kinds: list[tuple[str, str | None]], counts: list[int], tabled: bool
) -> None:
    counts = counts[: len(kinds)]
    numbers = [kind for kind, count in enumerate(counts) for _ in range(count)]

    def arranged(chosen: list[int], counts: list[int] | None) -> Arrangement | str:
        told = [kinds[kind][1] for kind in chosen] if tabled else None
        try:
            return arrange([f"{kinds[kind][0]}1.png" for kind in chosen], told, counts=counts)
        except DataError as error:
            return str(error)

    each, together = arranged(numbers, None), arranged(list(range(len(kinds))), counts)
    if isinstance(each, str) or isinstance(together, str):
        assert each == together
        return
    assert each.parts == [together.parts[kind] for kind in numbers]
    assert each.labels == [together.labels[kind] for kind in numbers]
    assert each.left_out == {
        index: together.left_out[kind] for index, kind in enumerate(numbers) if kind in together.left_out
    }
    assert each.remarks == together.remarks
