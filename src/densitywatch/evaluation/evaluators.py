"""Every evaluator, in the order of the report; a new one is a function in a file of its own and a line here."""

from __future__ import annotations

from densitywatch.evaluation.context import Evaluator
from densitywatch.evaluation.curves import curves
from densitywatch.evaluation.likelihood import bounds, exact_likelihood
from densitywatch.evaluation.reconstruction import reconstruction
from densitywatch.evaluation.samples import sample_grid

EVALUATORS: list[Evaluator] = [
    exact_likelihood,
    bounds,
    sample_grid,
    reconstruction,
    curves,
]
