"""The list of evaluators, in the order of the report. A new one is a function in a new file and a line here."""

from __future__ import annotations

from densitywatch.evaluation.measures.adversarial_game import game_demonstration
from densitywatch.evaluation.measures.code_length import code_length
from densitywatch.evaluation.measures.context import Evaluator
from densitywatch.evaluation.measures.label_quality import label_quality
from densitywatch.evaluation.measures.labels import labels_with_rejection
from densitywatch.evaluation.measures.latent import latent_space
from densitywatch.evaluation.measures.likelihood import bounds, exact_likelihood
from densitywatch.evaluation.measures.linear_probe import linear_probe
from densitywatch.evaluation.measures.reconstruction import reconstruction
from densitywatch.evaluation.measures.sample_quality import sample_quality
from densitywatch.evaluation.measures.samples import sample_grid
from densitywatch.evaluation.measures.training_curves import curves

EVALUATORS: list[Evaluator] = [
    exact_likelihood,
    bounds,
    labels_with_rejection,
    code_length,
    sample_grid,
    reconstruction,
    sample_quality,
    label_quality,
    latent_space,
    linear_probe,
    curves,
    game_demonstration,
]
