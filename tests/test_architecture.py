"""Rules that no single module can keep by itself: who imports whom, what no one calls, what each stage declares."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src"
PACKAGE = SRC / "densitywatch"
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
WINGS = (
    "data",
    "pages",
    "models",
    "tracking",
    "training",
    "evaluation",
    "detector",
    "outlier_benchmark",
    "registry",
    "batches",
)
"""From the bottom to the top: a wing imports from those before it and never from one after it."""
GROUND = (
    "arrays",
    "devices",
    "environment",
    "errors",
    "files",
    "params",
    "params_models",
    "profiles",
    "progress",
    "sizes",
    "stopping",
    "templates",
    "text",
)
"""Files below all wings."""
ENTRIES = ("densitywatch", "__main__", "answers", "cli", "cli_app", "console", "doctor", "loading", "sample")
"""Files above all wings: what people and programs call."""
PLUMBING = {
    # what these do is the same whatever the figures are: a change in them need not train a model again
    *(f"densitywatch.{name}" for name in GROUND if name not in ("devices", "templates", "text")),
    "densitywatch",
    "densitywatch.cli",
    "densitywatch.cli_app",
    "densitywatch.console",
    "densitywatch.data.dataset",
    "densitywatch.loading",
    "densitywatch.models.header",
    "densitywatch.models.offers",
    "densitywatch.models.storage",
    "densitywatch.tracking.addresses",
    "densitywatch.tracking.database",
    "densitywatch.tracking.runs",
    "densitywatch.tracking.schemas",
    "densitywatch.tracking.store",
    "densitywatch.training.bookkeeping",
}
MODEL_KINDS = ("autoencoder", "conditional_gan", "dcgan", "gan", "pixelcnn", "pixelcnn_pyramid", "pixelrnn", "vae")
IMPORTLIB_HOMES = ("data/decoding/sandbox_child.py", "models/storage.py")
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_YAML = ("yaml.load", "yaml.unsafe_load")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@cache
def modules() -> dict[str, Path]:
    """Every module of src by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(node: ast.AST) -> Iterator[str]:
    """Every module imported below a node, in functions too: `from a import b` is a.b where that is a module, else a."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from (alias.name for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, "imports are absolute"
            for alias in found.names:
                inner = f"{found.module}.{alias.name}"
                yield inner if inner in modules() else str(found.module)


def names_of_programs(path: Path) -> Iterator[str]:
    """Every module that a file runs by its name or hands on as a file.

    `[..., "-m", "a.b"]`, "a.b:function" for a child process, and `with_name("b.py")` for what MLflow runs.
    """
    for found in ast.walk(tree(path)):
        if isinstance(found, ast.List):
            texts = [item.value if isinstance(item, ast.Constant) else None for item in found.elts]
            for option, name in itertools.pairwise(texts):
                if option == "-m":
                    yield f"{name}.__main__" if f"{name}.__main__" in modules() else str(name)
        elif isinstance(found, ast.Constant) and isinstance(found.value, str):
            module, colon, _ = found.value.partition(":")
            if colon and module in modules():
                yield module
        elif isinstance(found, ast.Call) and ast.unparse(found.func).endswith("(__file__).with_name"):
            beside = path.with_name(ast.literal_eval(found.args[0]))
            yield from (name for name, file in modules().items() if file == beside)


def top_names(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree(path))}


def where(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_src_imports_neither_prefect_nor_dvc_nor_pipelines() -> None:
    assert where([path for path in modules().values() if top_names(path) & {"prefect", "dvc", "pipelines"}]) == []


@pytest.mark.parametrize(
    ("library", "homes"),
    [
        (
            "mlflow",
            (
                "tracking/opening.py",
                "tracking/runs.py",
                *(
                    f"registry/{name}.py"
                    for name in ("champions", "download", "history", "on_watch", "read_history", "serving", "versions")
                ),
            ),
        ),
        (
            "great_expectations",
            ("data/validation/expectations.py", "data/validation/data_docs.py"),
        ),
    ],
)
def test_a_heavy_library_stays_in_its_home(library: str, homes: tuple[str, ...]) -> None:
    users = [path for path in modules().values() if library in top_names(path)]
    assert {str(path.relative_to(PACKAGE)) for path in users} <= set(homes)


def test_nothing_loads_a_pickle_or_runs_text_as_code() -> None:
    guilty = []
    for path in [*modules().values(), *(ROOT / "pipelines").glob("*.py")]:
        if top_names(path) & FORBIDDEN_MODULES:
            guilty.append(f"{path.name}: imports {top_names(path) & FORBIDDEN_MODULES}")
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            # published weights come as a pickle: one file reads them after their digest is checked, tensors alone
            checked = path == PACKAGE / "detector/local/lite0.py" and said.get("weights_only") == "True"
            if name in FORBIDDEN_CALLS or (name == "torch.load" and not checked) or name in UNSAFE_YAML:
                guilty.append(f"{path.name}:{node.lineno}: {name}")
            if name in ("np.load", "numpy.load") and said.get("allow_pickle") != "False":
                guilty.append(f"{path.name}:{node.lineno}: {name} without allow_pickle=False")
            if said.get("allow_pickle") == "True" or said.get("shell") == "True":
                guilty.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")
    assert guilty == []


def test_all_pages_share_one_jinja_environment_which_escapes() -> None:
    made = [
        (name, "autoescape=True" in ast.unparse(node))
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Environment")
    ]
    assert made == [("densitywatch.templates", True)]


def wing_of(module: str) -> int:
    """The height of a module: 0 on the ground, then the wings, and the entries on top."""
    name = module.split(".")[1] if "." in module else module
    if name in WINGS:
        return 1 + WINGS.index(name)
    return 0 if name in GROUND else 1 + len(WINGS)


@cache
def arrows() -> dict[str, set[str]]:
    """What every module of src imports from src, in functions too, and what importlib finds by name."""
    found = {
        name: {other for other in imports(tree(path)) if other in modules() and other != name}
        for name, path in modules().items()
    }
    kinds = {f"densitywatch.models.{kind}" for kind in MODEL_KINDS}
    found["densitywatch.models.storage"] |= kinds
    return found


@cache
def uses() -> dict[str, set[str]]:
    """The arrows, and to what each module runs in another process."""
    return {
        name: others | (set(names_of_programs(modules()[name])) & modules().keys()) for name, others in arrows().items()
    }


def test_every_file_has_a_place() -> None:
    places = {name.split(".")[1] for name in modules() if "." in name}
    assert places == {*WINGS, *GROUND, *ENTRIES} - {"densitywatch"}


def test_no_wing_imports_from_a_higher_one() -> None:
    upward = [
        f"{name} imports {other}"
        for name, others in uses().items()
        for other in others
        if wing_of(other) > wing_of(name)
    ]
    assert upward == []


def test_no_circle_of_imports() -> None:
    left = {name: set(others) for name, others in arrows().items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert {name: sorted(others & left.keys()) for name, others in left.items()} == {}


def test_importlib_is_used_where_arrows_know_of_it() -> None:
    users = [path for path in modules().values() if "importlib.import_module(" in path.read_text(encoding="utf-8")]
    assert sorted(where(users)) == sorted(f"src/densitywatch/{file}" for file in IMPORTLIB_HOMES)


def test_faces_hold_no_code() -> None:
    """An `__init__` says what its folder is and hands names on."""
    for path in modules().values():
        if path.name == "__init__.py":
            for node in tree(path).body:
                text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
                names = isinstance(node, ast.Assign) and str(ast.unparse(node.targets[0])).startswith("__")
                assert text or names or isinstance(node, ast.ImportFrom), f"{path}:{node.lineno}"


def test_no_private_name_crosses_a_room() -> None:
    crossing = [
        f"{name}: {alias.name} of {node.module}"
        for name, path in modules().items()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("densitywatch")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert crossing == []


def files_of_tests(height: int) -> list[Path]:
    """The test files of a wing; the files on the ground and the entries are tested next to the wings' folders."""
    if 0 < height <= len(WINGS):
        return sorted((ROOT / "tests" / WINGS[height - 1]).rglob("*.py"))
    return [path for path in sorted((ROOT / "tests").glob("*.py")) if path != Path(__file__).resolve()]


def runs_anything(path: Path) -> bool:
    """Whether a file has code to test: names of types alone have none."""
    return path.name == "__init__.py" or any(
        isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If) for node in tree(path).body
    )


def test_every_module_is_reached_by_the_tests_of_its_own_wing() -> None:
    """A test file there imports it or runs it, or a module of the wing that is reached does."""
    unreached = []
    for height in range(len(WINGS) + 2):
        inside = {name for name, path in modules().items() if wing_of(name) == height and runs_anything(path)}
        waiting = {
            name
            for path in files_of_tests(height)
            for name in [*imports(tree(path)), *names_of_programs(path)]
            if name in inside
        }
        reached = set[str]()
        while waiting:
            name = waiting.pop()
            reached.add(name)
            faces = {name.rsplit(".", count)[0] for count in range(1, name.count("."))}  # run before what is in them
            waiting |= (uses()[name] | faces) & inside - reached
        unreached += sorted(inside - reached)
    assert unreached == []


def closure(start: set[str]) -> set[str]:
    """The modules of src that are reached from `start` by imports; plumbing is not followed."""
    known, reached, waiting = modules(), set[str](), set(start)
    while waiting:
        name = waiting.pop()
        if name in reached or name not in known:
            continue
        reached.add(name)
        if name not in PLUMBING:
            waiting |= set(imports(tree(known[name])))
    return reached - PLUMBING


def verb_imports(verb: str) -> set[str]:
    """What the function behind a verb of the command line imports."""
    for node in tree(PACKAGE / "cli.py").body:
        if isinstance(node, ast.FunctionDef) and node.name == verb.replace("-", "_"):
            return {name for name in imports(node) if name.startswith("densitywatch.")}
    raise AssertionError(f"cli.py has no verb {verb}")


def stages() -> list[tuple[str, str, list[str]]]:
    """Each stage of dvc.yaml as (name, command, paths that it depends on), one for each model where it has models."""
    found = []
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        body = stage.get("do", stage)
        if not body["cmd"].startswith("densitywatch "):
            continue  # a copy, which imports nothing
        items = PARAMS["models"] if "foreach" in stage else {None: {}}
        for key, item in items.items():
            text = yaml.safe_dump(body).replace("${key}", str(key)).replace("${item.kind}", str(item.get("kind")))
            filled = yaml.safe_load(text)
            found.append((f"{name}@{key}" if key else name, filled["cmd"], filled.get("deps", [])))
    return found


@pytest.mark.parametrize(("name", "command", "declared"), stages(), ids=[stage[0] for stage in stages()])
def test_a_stage_declares_every_module_that_can_change_its_results(
    name: str, command: str, declared: list[str]
) -> None:
    """DVC does not follow imports (dvc issue 9195): what a stage does not declare goes stale unseen."""
    files = {Path(path).stem for path in declared if path.startswith("src/densitywatch/models/")}
    key = name.partition("@")[2]
    kinds = {PARAMS["models"][key]["kind"]} if key else files  # model files are loaded by their names
    start = verb_imports(command.split()[1]) | {f"densitywatch.models.{kind}" for kind in kinds}
    if name.startswith("train@"):  # the other branch of this verb, which has a stage of its own
        start.remove("densitywatch.evaluation.measures.feature_network")
    if command.endswith("classifier"):
        start.remove("densitywatch.training.train")
    needed = closure(start)
    covered = [ROOT / path for path in declared]
    missing = [
        str(path.relative_to(ROOT))
        for path in (modules()[module] for module in sorted(needed))
        if not any(path == cover or cover in path.parents for cover in covered)
    ]
    assert not missing, f"add {missing} to the deps of {name} in dvc.yaml"


@pytest.mark.parametrize(("name", "command", "declared"), stages(), ids=[stage[0] for stage in stages()])
def test_a_stage_declares_no_source_that_is_gone(name: str, command: str, declared: list[str]) -> None:
    assert [path for path in declared if path.startswith("src/") and not (ROOT / path).exists()] == [], name
