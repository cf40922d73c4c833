"""The program `densitywatch`: its own options, and what a verb of cli.py begins with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from densitywatch import __version__, environment
from densitywatch.errors import ParamsError

if TYPE_CHECKING:
    from densitywatch.params import Params

app = typer.Typer(
    name="densitywatch",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Name = Annotated[str, typer.Argument(help="A model's name: a key under `models:` in params.yaml.")]


def _version(value: bool) -> None:
    if value:
        print(f"densitywatch {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Examples:\n\n\b\n  densitywatch doctor\n  densitywatch train vae\n"
    "  densitywatch score my/images --out my/results\n  dvc repro      # every stage that is not up to date"
)
def options(
    context: typer.Context,
    params: Annotated[Path, typer.Option(help="The file with every knob.")] = Path("params.yaml"),
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train generative image models, compare them in the same units, and watch a stream of images for outliers.

    Run from the project's top folder. `make run` does everything; these are its steps.
    """
    context.obj = params


def load(context: typer.Context, *, check_models: bool = False, stage: bool = False) -> tuple[Params, Path]:
    """The params and the project's top folder (where the command was typed).

    `stage`: other stages may run at the same time, so this one keeps to its share of the cores.
    """
    from densitywatch.params import load_params

    params = load_params(context.obj)
    if stage:
        environment.limit_threads(os.environ, params.device.threads_of_a_stage)
        environment.keep_freed_memory()
    if check_models:
        from densitywatch.models.storage import check_settings

        check_settings(params, context.obj)
    return params, Path.cwd()


def load_for(context: typer.Context, name: str, *also: str, stage: bool = False) -> tuple[Params, Path]:
    """`load`, once `name` is a model of params.yaml or one of `also`. Raises ParamsError otherwise."""
    params, root = load(context, check_models=True, stage=stage)
    if name not in params.models and name not in also:
        known = ", ".join([*params.models, *also])
        raise ParamsError(f"no model '{name}' in {context.obj}; there is: {known}")
    return params, root
