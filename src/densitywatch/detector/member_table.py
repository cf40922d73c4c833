"""The members by name. A new score is added to MEMBERS."""

from __future__ import annotations

from collections.abc import Iterable

from densitywatch.detector.member import Member
from densitywatch.detector.scores import (
    arrangement,
    likelihood,
    local,
    pixels,
    pyramid,
    small_density,
    transformations,
    vae,
)
from densitywatch.errors import ParamsError
from densitywatch.params import Params

MEMBERS: dict[str, Member] = {
    member.name: member
    for member in (
        likelihood.pixelcnn_nll,
        likelihood.typicality,
        likelihood.input_complexity,
        likelihood.excess_surprise,
        pixels.pixel_mixture,
        pixels.nearest_neighbours,
        arrangement.composition,
        arrangement.pixel_arrangement,
        arrangement.gradient_arrangement,
        arrangement.surprise_pattern,
        arrangement.surprise_arrangement,
        small_density.full_minus_local,
        small_density.likelihood_ratio,
        vae.vae_reconstruction,
        vae.vae_kl,
        vae.likelihood_regret,
        vae.model_statistics,
        transformations.transformation_ratio,
        transformations.transformation_judge,
        local.own_place,
        local.own_anywhere,
        local.own_whole,
        local.lite0_place,
        local.lite0_anywhere,
        local.lite0_whole,
        pyramid.pyramid_excess,
    )
}
"""In the order of the benchmark's tables. The detector has those that `detector.members` of params.yaml names."""


def find_member(name: str) -> Member:
    """The member of that name. Raises ParamsError, naming those that exist."""
    if name not in MEMBERS:
        raise ParamsError(f"detector.members: no score '{name}'; there is: {', '.join(sorted(MEMBERS))}")
    return MEMBERS[name]


def check_reads(members: Iterable[Member], params: Params) -> None:
    """Raises ParamsError where a member reads a model that params lack, or that calibrate does not wait for."""
    for member in members:
        for name in member.reads:
            if name not in params.models:
                raise ParamsError(
                    f"detector.members: '{member.name}' reads the model '{name}', which `models` of params.yaml lacks;"
                    " add it there or leave the member out"
                )
            if name not in params.detector.reads:
                raise ParamsError(
                    f"detector.reads: '{member.name}' reads the model '{name}', which is not named there, so nothing"
                    " would wait for its training; add it"
                )
