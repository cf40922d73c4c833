"""Every evaluator, in the order of the report; a new one is a function in a file of its own and a line here."""

from __future__ import annotations

from densitywatch.evaluation.code_length import code_length
from densitywatch.evaluation.context import Evaluator
from densitywatch.evaluation.curves import curves
from densitywatch.evaluation.game import game_demonstration
from densitywatch.evaluation.label_quality import label_quality
from densitywatch.evaluation.labels import labels_with_rejection
from densitywatch.evaluation.latent import latent_space
from densitywatch.evaluation.likelihood import bounds, exact_likelihood
from densitywatch.evaluation.probe import linear_probe
from densitywatch.evaluation.quality import sample_quality
from densitywatch.evaluation.reconstruction import reconstruction
from densitywatch.evaluation.samples import sample_grid

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
