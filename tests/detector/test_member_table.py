"""The table of members."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from densitywatch.detector import scores
from densitywatch.detector.member import Member
from densitywatch.detector.member_table import MEMBERS, find_member
from densitywatch.errors import ParamsError


def test_an_unknown_score_is_named_together_with_those_that_exist() -> None:
    with pytest.raises(ParamsError, match=r"no score 'wisdom'; there is: .*pixelcnn_nll"):
        find_member("wisdom")


def test_every_member_of_a_file_of_scores_is_in_the_table() -> None:
    names = [module.name for module in pkgutil.iter_modules(scores.__path__, f"{scores.__name__}.")]
    found = [value for name in names for value in vars(importlib.import_module(name)).values()]
    written = {value.name for value in found if isinstance(value, Member)}
    assert written == set(MEMBERS)
