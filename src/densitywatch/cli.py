"""`densitywatch VERB`: what dvc.yaml runs and what people type. Exit codes and signals are in console.py.

Each verb imports what it needs inside its function, so `--help` answers at once: torch and MLflow take seconds. The
order: the stages of dvc.yaml, models by hand, the registry, batches, the checkout.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from densitywatch import console
from densitywatch.cli_app import Name, app
from densitywatch.cli_app import load as _load
from densitywatch.cli_app import load_for as _load_for
from densitywatch.errors import GateRejected, ParamsError
from densitywatch.progress import tell


def main() -> None:
    """The console script."""
    console.run(app)


@app.command()
def fetch(
    context: typer.Context,
    panel: Annotated[bool, typer.Option("--panel", help="Fetch the foreign images of the benchmark instead.")] = False,
) -> None:
    """Download the dataset and verify it byte for byte."""
    from densitywatch.data import fetch as sources

    params, root = _load(context)
    if panel:
        sources.fetch_panel(params, root)
    else:
        sources.fetch(params, root)


@app.command()
def look(context: typer.Context) -> None:
    """Note what data.address holds now, so that a change is fetched."""
    from densitywatch.data import look as module

    module.look(*_load(context))


@app.command()
def prepare(context: typer.Context) -> None:
    """Turn data/raw into one array a split, and a manifest."""
    from densitywatch.data import prepare as module

    module.prepare(*_load(context))


@app.command()
def validate(context: typer.Context) -> None:
    """Check the manifest against the expectations."""
    from densitywatch.data.validation import validate as expectations

    expectations.validate(*_load(context))


@app.command("demo-batch")
def demo_batch(context: typer.Context) -> None:
    """Write data/inbox/demo, a batch with outliers in it."""
    from densitywatch.data import demo_batch as demo

    demo.make_demo_batch(*_load(context))


@app.command(epilog="Example: densitywatch train pixelcnn")
def train(context: typer.Context, model: Name) -> None:
    """Train MODEL, or the network `classifier`.

    Writes models/MODEL. After a kill, the same command goes on where it was.
    """
    params, root = _load_for(context, model, "classifier", stage=True)
    if model == "classifier":
        from densitywatch.evaluation.measures.feature_network import train_classifier

        train_classifier(params, root)
        return
    from densitywatch.training.train import train_model

    train_model(model, params, root)


@app.command(epilog="Example: densitywatch evaluate pixelcnn")
def evaluate(context: typer.Context, model: Name) -> None:
    """Write metrics/MODEL.json and reports/models/MODEL."""
    params, root = _load_for(context, model, stage=True)
    from densitywatch.evaluation.evaluate import evaluate_model

    evaluate_model(model, params, root)


@app.command()
def calibrate(context: typer.Context) -> None:
    """Fit the outlier detector and calibrate its p-values."""
    params, root = _load(context, check_models=True, stage=True)

    from densitywatch.detector import calibrate as module

    module.calibrate(params, root)


@app.command()
def benchmark(context: typer.Context) -> None:
    """Measure the detector: metrics/outliers.json."""
    params, root = _load(context, check_models=True, stage=True)

    from densitywatch.outlier_benchmark import benchmark as module

    module.benchmark(params, root)


@app.command()
def report(context: typer.Context) -> None:
    """Write reports/index.html, one page with all results."""
    from densitywatch.evaluation.report.report import write_report

    write_report(*_load(context, check_models=True))


@app.command("verify-likelihood", epilog="Example: densitywatch verify-likelihood pixelcnn -n 256 --out images.dwcode")
def verify_likelihood(
    context: typer.Context,
    model: Name,
    n: Annotated[int, typer.Option("-n", help="Number of test images.")] = 256,
    out: Annotated[Path | None, typer.Option(help="Keep the coded file there.", show_default=False)] = None,
) -> None:
    """Code and decode test images: a code length that is real.

    MODEL's own probabilities code them, another process decodes them, and every byte is compared. Shows
    the file's size in bits per dimension next to the computed likelihood and to PNG, WebP and xz.
    """
    params, root = _load_for(context, model)
    from dataclasses import asdict

    from densitywatch.evaluation.measures.code_length import verify_likelihood

    length = asdict(verify_likelihood(model, n, params, root, out))
    tell(f"{model}: {length.pop('images')} test images, decoded byte for byte by another process; bits/dim:")
    for means, bits in length.items():
        tell(f"  {means:9} {bits:.4f}")


@app.command(
    epilog="Examples:\n\n\b\n  densitywatch sample pixelcnn -n 64 --out grid.png\n"
    "  densitywatch sample pixelcnn --given image.png --rows 14"
)
def sample(
    model: Annotated[str, typer.Argument(help="A model's name, its folder or a registry address.")],
    n: Annotated[int, typer.Option("-n", help="Number of images.")] = 64,
    label: Annotated[str | None, typer.Option(help="Only images of this label (conditional models).")] = None,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 1,
    given: Annotated[Path | None, typer.Option(help="An image file whose lower part is drawn anew.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of it that are kept; by default half.")] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("grid.png"),
) -> None:
    """Draw images from a model into one PNG."""
    from densitywatch.sample import draw

    tell(draw(_address(model), n, label=label, seed=seed, given=given, rows=rows, out=out))


Registered = Annotated[str | None, typer.Argument(help="A model of params.yaml, or `detector`.", show_default=False)]


@app.command(epilog="Examples: densitywatch register vae; densitywatch register --all")
def register(
    context: typer.Context,
    model: Registered = None,
    all_: Annotated[bool, typer.Option("--all", help="Every model of params.yaml and the detector.")] = False,
) -> None:
    """Put a trained model into the registry as challenger."""
    if (model is None) != all_:
        raise ParamsError("name one model, or pass --all: densitywatch register MODEL | --all")
    params, root = _load(context, check_models=True) if model is None else _load_for(context, model, "detector")
    from densitywatch.registry import versions as registry

    for name in [*params.models, "detector"] if model is None else [model]:
        tell(f"{name}: version {registry.register(name, params, root)}")


Why = Annotated[str, typer.Option("--reason", help="Why, in your words, for the history.", show_default=False)]


@app.command(epilog="Example: densitywatch promote pixelcnn")
def promote(
    context: typer.Context,
    model: Name,
    version: Annotated[int | None, typer.Option(min=1, help="This version.  [default: the challenger]")] = None,
    afresh: Annotated[bool, typer.Option("--afresh", help="Compare with no champion; the floor holds.")] = False,
    reason: Why = "",
) -> None:
    """Make the challenger champion if it passes the gate.

    Measures challenger and champion now, on the same images. A version that was rolled back needs --version. Where a
    person chose the champion in MLflow, automatic promotion goes on after this.
    """
    params, root = _load_for(context, model, "detector")
    from densitywatch.registry import versions as registry

    decision = registry.promote(model, params, root, version, afresh=afresh, actor=_actor(reason))
    if not decision.passed:
        raise GateRejected(f"{model}: {decision.reason}")
    tell(f"{model}: {decision.reason}")


@app.command(epilog="Example: densitywatch rollback pixelcnn")
def rollback(context: typer.Context, model: Name, reason: Why = "") -> None:
    """Make the previous champion the champion again."""
    params, root = _load_for(context, model, "detector")
    from densitywatch.registry import versions as registry

    version = registry.rollback(model, params, root, actor=_actor(reason))
    tell(f"{model}: version {version} is champion again")


@app.command(epilog="Examples: densitywatch history; densitywatch history detector -n 5; densitywatch history --json")
def history(
    context: typer.Context,
    model: Registered = None,
    as_json: Annotated[bool, typer.Option("--json", help="As a list of objects, for programs.")] = False,
    n: Annotated[int | None, typer.Option("-n", min=1, help="The newest N entries of each model.", metavar="N")] = None,
) -> None:
    """Show who made which version champion when, and why.

    The newest first, with what the gate refused. Without MODEL: of every registered model.
    """
    params, root = _load(context)
    from densitywatch.registry.read_history import read_history, registered_models

    found = {
        name: read_history(name, params, root)
        for name in (registered_models(params, root) if model is None else [model])
    }
    if as_json:
        tell(json.dumps([{"model": name, **entry.as_dict()} for name in found for entry in found[name][1][:n]]))
        return
    for name, (champion, entries) in found.items():
        tell(f"{name}: {f'version {champion} is champion' if champion else 'no champion'}")
        for entry in entries[:n]:
            tell(f"  {entry}")


DetectorAt = Annotated[
    str | None, typer.Option(help="A detector's folder or registry address; by default models/detector.")
]
FollowLinks = Annotated[
    bool | None,
    typer.Option(
        "--follow-links/--no-follow-links",
        help="Read the files that symbolic links lead to; by default inbox.follow_links.",
        show_default=False,
    ),
]


@app.command(
    epilog="Examples:\n\n\b\n  densitywatch score my/images --out my/results\n"
    "  densitywatch score 's3://bucket/2024-05-01/*.jpg' --fdr 0.05\n"
    "  densitywatch score shipment.zip --fail-on 1      # in CI: exits with 1 when an image is flagged\n"
    "  densitywatch score s3://bucket/monday --engine ray --out s3://bucket/results/monday"
)
def score(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(help="A folder, a quoted glob, a zip or tar archive, Parquet, or any fsspec address.")
    ],
    out: Annotated[
        str | None,
        typer.Option(
            help="Folder of the results; by default data/outliers/<name>. An address: they are copied there as well."
        ),
    ] = None,
    detector: DetectorAt = None,
    fdr: Annotated[
        float | None, typer.Option(help="Allowed share of false alarms among the flagged; by default the detector's.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Hold --fdr for this calibration set, not only on average; flags fewer.")
    ] = False,
    control: Annotated[
        Literal["batch", "stream"],
        typer.Option(help="What --fdr holds for: a batch by itself, on average, or all batches of a stream together."),
    ] = "batch",
    labels: Annotated[
        str | None, typer.Option(help="A conditional density that labels every image, such as conditional_pixelcnn.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Look at the first N files only.", metavar="N")] = None,
    fail_on: Annotated[
        int | None, typer.Option(help="Exit with 1 when N images or more are flagged.", metavar="N")
    ] = None,
    follow_links: FollowLinks = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Score in this process, or on the machines of a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Processes of --engine ray; by default one for each core.", metavar="N")
    ] = None,
) -> None:
    """Find the images of SOURCE that do not belong.

    Writes scores.parquet, summary.json and report.html. After a kill, the same command goes on where it was. The same
    files are not scored twice.
    """
    params, root = _load(context)
    from densitywatch.batches.score_batch import ScoreOptions, score_source
    from densitywatch.data.inputs.source import is_local, local_path

    here = out is None or is_local(out)
    options = ScoreOptions(
        false_discovery_rate=fdr,
        strict=strict,
        control=control,
        limit=limit,
        fail_on=fail_on,
        label_model=labels and _address(labels),
        follow_links=follow_links,
        engine=engine,
        workers=workers,
        copy_to=None if here else out,
    )
    folder = local_path(out) if out is not None and here else None
    summary = score_source(source, params, root, folder, detector, options)
    results, copy = summary.pop("folder"), summary.pop("copy", None)
    _show(summary)
    tell(f"results: {results}" if copy is None else f"results: {results}, copied to {copy}")


@app.command(
    epilog="Examples:\n\n\b\n  densitywatch assess my/sorted              # my/sorted/good, my/sorted/scratch, ...\n"
    "  densitywatch assess bottle/test            # MVTec's layout, with masks in bottle/ground_truth\n"
    "  densitywatch assess bottle --detector models/detector --out my/assessment"
)
def assess(
    context: typer.Context,
    folder: Annotated[str, typer.Argument(help="A folder with good/ and a folder for each kind of bad image.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; by default data/assessments/<name>.", show_default=False)
    ] = None,
    detector: DetectorAt = None,
    follow_links: FollowLinks = None,
) -> None:
    """Measure how well the detector finds bad images that you have sorted by kind.

    Writes assessment.json and assessment.html: for each kind AUROC and the share found, next to what needs no model,
    figures of pixels where ground_truth/ has masks, and the false alarms on good/. Changes nothing that is fitted.
    """
    params, root = _load(context)
    from densitywatch.batches.assess.assessment import assess as measure
    from densitywatch.batches.assess.assessment import in_lines

    found = measure(folder, params, root, out, detector, follow_links=follow_links)
    for line in in_lines(found):
        tell(line)
    tell(f"results: {found['out']}")


@app.command(
    epilog="Examples:\n\n\b\n  densitywatch review demo\n  densitywatch review demo --to-csv verdicts.csv\n"
    "  densitywatch review demo --from-csv verdicts.csv\n"
    "  densitywatch review demo --at-random 50                # images drawn at random are asked about too\n"
    "  densitywatch review demo --collect data/reviewed      # originals, into fine/ and outlier/"
)
def review(
    context: typer.Context,
    batch: Annotated[str, typer.Argument(help="A scored batch: its name under data/outliers, or its results' folder.")],
    port: Annotated[int, typer.Option(help="The page's port on 127.0.0.1.", min=1, max=65535)] = 8765,
    at_random: Annotated[
        int | None, typer.Option(help="Draw this many scored images at random, to be judged next to the flagged ones.")
    ] = None,
    to_csv: Annotated[Path | None, typer.Option(help="Write the images to judge as a table to fill in.")] = None,
    from_csv: Annotated[Path | None, typer.Option(help="Read the verdicts from such a table.")] = None,
    collect: Annotated[Path | None, typer.Option(help="Copy the reviewed originals there, by verdict.")] = None,
) -> None:
    """Judge a batch's flagged images, and others that are drawn at random.

    Opens a local page, or writes and reads a table. Verdicts (outlier, fine) are kept with the batch; the report shows
    the precision that follows.
    """
    params, root = _load(context)
    from densitywatch.batches.review import judging, originals, random_draw, verdict_table

    folder = judging.batch_folder(batch, params, root)
    if at_random is not None:
        tell(f"drawn at random: {len(random_draw.draw(folder, at_random, root, params.seed))}")
    if from_csv is not None:
        tell(f"verdicts taken: {verdict_table.read_csv(folder, from_csv)}")
    if to_csv is not None:
        tell(f"{to_csv}: {verdict_table.write_csv(folder, to_csv)} images to judge")
    if collect is not None:
        for verdict, count in originals.collect(folder, collect, root).items():
            tell(f"{collect / verdict}: {count}")
    if from_csv is None and to_csv is None and collect is None:
        from densitywatch.batches.review.server import serve

        console.ends_by_itself()
        serve(folder, port, root=root, seed=params.seed)


@app.command(epilog="Example: make run PROFILE=gpu   (is `densitywatch profile gpu`, then `make run`)")
def profile(name: Annotated[str, typer.Argument(help="The name of a file in profiles/.")]) -> None:
    """Set the values of profiles/NAME.yaml in params.yaml.

    `git checkout params.yaml dvc.lock metrics` undoes it, with what a run noted.
    """
    from densitywatch.profiles import apply_profile

    changed = apply_profile(name, Path.cwd())
    tell(f"params.yaml: set {', '.join(changed)}" if changed else f"params.yaml: already as profile {name} says")


@app.command()
def doctor() -> None:
    """Show what this machine has and what it lacks.

    Exits with 1 when `make run` cannot work.
    """
    from densitywatch.doctor import diagnose

    findings = diagnose(Path.cwd())
    for finding in findings:
        tell(f"{'ok  ' if finding.ok else 'LACK' if finding.needed else 'note'}  {finding.name}: {finding.detail}")
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


def _actor(reason: str) -> Any:
    """Who types this command, for the registry's history."""
    from densitywatch.registry.history import Actor, user_name

    return Actor(user_name(), "command line", note=reason)


def _address(model: str) -> str:
    """A model's name as the folder models/NAME; a folder or a registry address as it is."""
    return model if "/" in model else f"models/{model}"


def _show(summary: dict[str, Any]) -> None:
    for key, value in summary.items():
        if isinstance(value, str | int | float | bool):
            tell(f"{key}: {value:.4g}" if isinstance(value, float) else f"{key}: {value}")
        if key == "quarantined":
            for reason, files in summary.get("quarantine_reasons", {}).items():
                tell(f"  {files}: {reason}")


if __name__ == "__main__":
    main()
