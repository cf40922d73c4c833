"""What `import densitywatch` offers. Imports are inside functions: torch and MLflow take seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def load_model(where: str) -> nn.Module:
    """The model at `where`, in eval mode on the CPU.

    `where` is a folder (`models/pixelcnn`) or a registry address (`models:/densitywatch-pixelcnn@champion`).
    A model has the methods that it can offer (models/offers.py): `log_prob`, `log_prob_map`, `sample`, `encode`,
    `reconstruct`, `decode`.

    Raises ModelError or RegistryError when there is no such model or its file is not whole.
    """
    from densitywatch.models.storage import load_model_folder
    from densitywatch.registry.download import model_folder

    return load_model_folder(model_folder(where))


def __getattr__(name: str) -> Any:
    if name == "MODELS":  # the dict of models imports torch, so it is made when it is asked for
        from densitywatch.models.storage import find_models

        return find_models()
    raise AttributeError(f"module 'densitywatch' has no attribute {name!r}")
