"""A registered model without any network, for tests of who is champion and of the history."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from densitywatch.files import content_digest
from densitywatch.params import Params
from densitywatch.registry import versions as registry
from densitywatch.registry.gate import Decision, judge
from densitywatch.registry.history import Entry
from densitywatch.registry.read_history import read_history
from densitywatch.registry.resampling import Measurement
from densitywatch.tracking import runs as tracking


def compare(name: str, ours: Path, theirs: Path | None, params: Params, root: Path) -> Decision:
    """The gate for the versions of a shelf."""
    new, old = (None if f is None else Measurement("bits", float((f / "figure").read_text())) for f in (ours, theirs))
    assert new is not None
    return judge(new, old, params.gate, None, np.ones((2, 1)), 1)


class Shelf:
    """A registered model whose versions are files with one number, smaller being better, which the gate compares."""

    def __init__(self, name: str, params: Params, root: Path) -> None:
        tracking.prepare_store(params, root)
        self.name, self.params, self.root = name, params, root
        self.client: Any = tracking.open_client(tracking.tracking_uri(params, root))
        self.model = f"densitywatch-{name}"
        self.client.create_registered_model(self.model)

    def add(self, figure: float) -> int:
        home = self.root / "mlartifacts" / self.name / f"{figure}"
        folder = home / "artifacts" / "model"
        folder.mkdir(parents=True)
        (folder / "figure").write_text(str(figure))
        made = self.client.create_model_version(
            self.model, home.as_uri(), tags={"content_sha256": content_digest(folder)}
        )
        self.client.set_registered_model_alias(self.model, "challenger", made.version)
        return int(made.version)

    def promote(self, version: int | None = None, **how: bool) -> Decision:
        return registry.promote(self.name, self.params, self.root, version, **how)

    def retrain(self) -> str:
        """What a run of the pipeline does with the challenger."""
        from pipelines import retrain  # Prefect takes seconds to import, and some tests start processes

        _, reason = retrain.promote.fn(self.name, self.params, self.root)
        return str(reason)

    def rollback(self) -> int | None:
        return registry.rollback(self.name, self.params, self.root)

    @property
    def history(self) -> list[Entry]:
        """The newest entry first."""
        return read_history(self.name, self.params, self.root)[1]

    def by_hand(self, version: int | None) -> None:
        """What a person does in MLflow's page."""
        if version is None:
            self.client.delete_registered_model_alias(self.model, "champion")
        else:
            self.client.set_registered_model_alias(self.model, "champion", str(version))

    @property
    def champion(self) -> int | None:
        alias = self.client.get_registered_model(self.model).aliases.get("champion")
        return None if alias is None else int(alias)

    def loaded(self) -> float:
        """The figure of the model that users of the champion get."""
        folder = registry.download_model(f"models:/{self.model}@champion", self.params, self.root)
        return float((folder / "figure").read_text())

    def lose(self, figure: float) -> None:
        shutil.rmtree(self.root / "mlartifacts" / self.name / f"{figure}")
