from __future__ import annotations

from densitywatch.evaluation.measures.training_curves import grouped, long_form, loss_csv

DENSITY = [
    {
        "step": 1,
        "train_loss": 4.0,
        "train_bits_per_dim": 4.0,
        "validation_bits_per_dim": 4.1,
        "train_learning_rate": 1.0,
    },
    {"step": 2, "train_loss": 3.0, "train_bits_per_dim": 3.0, "validation_bits_per_dim": None, "gradient_norm": 2.0},
]
GAME = [{"step": 1, "train_generator_loss": 0.7, "train_discriminator_loss": 1.4, "train_discriminator_accuracy": 0.5}]


def test_the_loss_in_named_units_is_the_headline_and_is_drawn_once() -> None:
    assert grouped(DENSITY) == (["bits_per_dim"], [["gradient_norm"]])


def test_the_losses_of_a_game_share_a_chart() -> None:
    assert grouped(GAME) == (["generator_loss", "discriminator_loss"], [["discriminator_accuracy"]])
    assert loss_csv(GAME) == "step,train,validation\n1,0.7,\n"


def test_training_and_validation_are_two_lines_and_gaps_stay_gaps() -> None:
    rows = long_form(DENSITY, ["bits_per_dim"])
    assert [(row["series"], row["step"]) for row in rows] == [("Train", 1), ("Train", 2), ("Validation", 1)]
    assert loss_csv(DENSITY) == "step,train,validation\n1,4,4.1\n2,3,\n"
