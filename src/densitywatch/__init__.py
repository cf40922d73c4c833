"""densitywatch: generative image models, and a watch for outliers with a stated rate of false alarms."""

from __future__ import annotations

# `__getattr__` makes densitywatch.MODELS when it is first asked for: it imports torch, which takes seconds
from densitywatch.loading import __getattr__ as __getattr__
from densitywatch.loading import load_model

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"
