"""What the docs name exists: paths, lines, dotted names, links, verbs, options, make targets; and the site is built."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.scripts import architecture, cli_page, figures, files_page, hooks

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "densitywatch"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "examples/README.md")),
]
PAGES = [page for page in PAGES if page.is_file()]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
SOURCES = {"src", "pipelines", "tests", "docs", "benchmarks", "profiles", "examples", ".github", ".ci"}
"""Folders whose files are in git: what docs name in them must be there. Others (models, reports) are made by a run."""
SUFFIXES = (".py", ".j2", ".css", ".ipynb")
"""Files of these kinds are in git wherever they are named."""
QUIET = {"NO_MKDOCS_2_WARNING": "1"}
"""mkdocs-material's advertisement of its successor."""
DRIFT_EVENT = "densitywatch.drift"
MADE = {"mine.yaml", "summary.py"}
"""Files that a guide tells its reader to write."""


def code_spans(page: Path) -> list[str]:
    """What stands between backticks outside of fenced blocks, without repeats."""
    return list(dict.fromkeys(re.findall(r"`([^`\n]+)`", without_blocks(page))))


def without_blocks(page: Path) -> str:
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> Iterator[str]:
    """Each line of the shell blocks, and each code span, that runs a verb."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for line in [line for block in blocks for line in block.replace("\\\n", " ").splitlines()] + code_spans(page):
        yield line.strip()


@cache
def tracked() -> set[str]:
    found = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in found.stdout.splitlines() if (ROOT / name).exists()}


def exists(path: str) -> bool:
    """Whether a path that docs name is in the tree: from the top, from the package, or, a bare name, anywhere."""
    path = path.rstrip("/")
    if (ROOT / path).exists() or (PACKAGE / path).exists():
        return True
    return "/" not in path and any(name.rsplit("/", 1)[-1] == path for name in tracked())


def paths_in(spans: list[str]) -> Iterator[str]:
    """The files and folders of git that spans name, without line numbers; patterns (`<model>`, `*`) are left out."""
    for span in spans:
        for word in span.split():
            name = re.sub(r":\d+(-\d+)?$", "", word.strip("'\"(),;"))
            placeholder = re.search(r"(?<![A-Z])(NAME|WING)(?![A-Z])", name)
            if placeholder or not re.fullmatch(r"[\w.][\w./-]*", name) or Path(name).name in MADE:
                continue
            top, _, below = name.partition("/")
            if (below and top in SOURCES) or name.endswith(SUFFIXES):
                yield name


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    assert [path for path in paths_in(code_spans(page)) if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_line_that_a_page_names_exists(page: Path) -> None:
    gone = []
    for path, number in re.findall(r"`([\w./-]+\.\w+):(\d+)", without_blocks(page)):
        file = next((place for place in (ROOT / path, PACKAGE / path) if place.is_file()), None)
        if file is None or len(file.read_text(encoding="utf-8").splitlines()) < int(number):
            gone.append(f"{path}:{number}")
    assert gone == []


@cache
def names_of_modules() -> dict[str, list[set[str]]]:
    """By each module's last name: the names that modules so called define, and those of their classes."""
    found: dict[str, list[set[str]]] = {}
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "pipelines").glob("*.py")]:
        module = path.parent.name if path.stem == "__init__" else path.stem
        found.setdefault(module, []).append(set(defined(ast.parse(path.read_text(encoding="utf-8")), path)))
    return found


def defined(tree: ast.AST, path: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).rsplit(".", 1)[-1]
    if path.stem == "__init__":
        yield from (child.stem for child in path.parent.iterdir())


@cache
def keys_of_params() -> set[str]:
    """Every dotted key of the params page, also without the model's name before it."""
    keys: set[str] = set()

    def add(value: Any, before: str) -> None:
        for key, inner in value.items() if isinstance(value, dict) else ():
            keys.add(f"{before}{key}")
            add(inner, f"{before}{key}.")

    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    add(params, "")
    for block in params["models"].values():
        add(block, "")
    section = ""
    for line in pages()["reference/params.md"].splitlines():
        if title := re.match(r"#+ (?:Settings of kind )?([\w.]+)$", line):
            section = title[1].replace("models.NAME.", "")
        elif row := re.match(r"\| `(\w+)` \|", line):
            keys |= {f"{section}.{row[1]}", f"settings.{row[1]}"}
    return keys


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_dotted_name_that_a_page_names_exists(page: Path) -> None:
    gone = []
    for span in code_spans(page):
        name = re.sub(r"\(.*\)$|: .*$", "", span)
        first, *rest = name.split(".")
        if not re.fullmatch(r"\w+(\.\w+)+", name) or (first not in names_of_modules() and first not in yaml_blocks()):
            continue
        in_module = any(set(rest) <= names | set(names_of_modules()) for names in names_of_modules().get(first, []))
        known = keys_of_params() | keys_of_outliers() | {DRIFT_EVENT}
        if not in_module and name not in known and not is_file(name):
            gone.append(name)
    assert gone == []


def test_the_event_that_pages_name_is_the_one_that_is_sent() -> None:
    assert f'EVENT = "{DRIFT_EVENT}"' in (ROOT / "pipelines" / "drift_loop.py").read_text(encoding="utf-8")


def yaml_blocks() -> set[str]:
    return {key.partition(".")[0] for key in keys_of_params()}


def is_file(name: str) -> bool:
    """Whether a dotted name is a file's: of git, or of a run."""
    endings = "yaml json jsonl parquet html db lock login safetensors csv toml md py zip tar png jpg"
    return name.rsplit(".", 1)[-1] in endings.split()


@cache
def keys_of_outliers() -> set[str]:
    """The dotted keys of metrics/outliers.json."""
    figures = json.loads((ROOT / "metrics" / "outliers.json").read_text(encoding="utf-8"))
    return {f"{key}.{inner}" for key, values in figures.items() if isinstance(values, dict) for inner in values}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_relative_link_is_broken(page: Path) -> None:
    text = without_blocks(page)
    made = {DOCS / place for place in hooks.PLACES}
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        place = (page.parent / target.partition("#")[0]).resolve()
        if "://" in target or target.startswith(("#", "mailto:")) or place.exists() or place in made:
            continue
        broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_verb_and_option_that_a_page_names_exists(page: Path) -> None:
    verbs = cli_page.verbs()
    wrong = []
    for line in commands(page):
        for verb, rest in re.findall(r"(?:^|\s|/)densitywatch ([a-z-]+)((?: [^|;&#]*)?)", line):
            if verb not in verbs:
                wrong.append(f"densitywatch {verb}")
                continue
            asked = re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest)
            wrong += [f"densitywatch {verb} {option}" for option in asked if option not in verbs[verb] | {"--help"}]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_make_target_that_a_page_names_exists(page: Path) -> None:
    targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    asked = [target for line in commands(page) for target in re.findall(r"^make ([a-z.][\w./-]*)", line)]
    assert [target for target in asked if target not in targets] == []


def test_decisions_are_numbered_without_gaps_and_all_are_in_the_index() -> None:
    index = (DOCS / "decisions" / "index.md").read_text(encoding="utf-8")
    pages = sorted((DOCS / "decisions").glob("0*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        number = int(page.name[:4])
        assert page.read_text(encoding="utf-8").startswith(f"# {number}. "), page.name
        assert f"[{number}]({page.name})" in index, page.name


def test_every_model_of_the_default_profile_has_a_page_with_its_figures() -> None:
    for name in figures.models():
        text = (DOCS / "models" / f"{name}.md").read_text(encoding="utf-8")
        assert f"{{{{ figures_of {name} }}}}" in text, name
        assert "## What it does badly" in text, name
        shown = hooks.with_figures(text)
        size = json.loads((ROOT / "metrics" / f"{name}.json").read_text(encoding="utf-8"))["size"]
        assert f"{size} x {size}" in shown, name


IN_THE_TEXT = [
    (
        "conditional_pixelcnn",
        "{conditional_pixelcnn[bits_per_dim]:.3f} bits/dim as the mixture of all labels,"
        " {conditional_pixelcnn[bits_per_dim_given_label]:.3f} given the right one,"
        " {pixelcnn[bits_per_dim]:.3f} of PixelCNN",
    ),
    ("conditional_pixelcnn", "the standard error of one of them ({conditional_pixelcnn[bits_per_dim_stderr]:.3f})"),
    ("conditional_pixelcnn", "is better ({classifier[accuracy]:.3f} here)"),
    ("pixelrnn", "({pixelrnn[bits_per_dim]:.3f} against {pixelcnn[bits_per_dim]:.3f} bits/dim)"),
    (
        "conditional_gan",
        "reaches {conditional_gan[gan_train_accuracy]:.2f}; from real images it reaches {classifier[accuracy]:.2f}",
    ),
    ("autoencoder", "with all labels ({classifier[raw_pixel_probe_48000]:.3f})"),
]
"""By page of a model: what it says in words, with the keys of metrics/ in place of figures."""


@pytest.mark.parametrize(("page", "words"), IN_THE_TEXT)
def test_a_figure_in_the_text_of_a_models_page_is_the_one_that_metrics_holds(page: str, words: str) -> None:
    """The metrics of the last commit count as well: a run of one's own changes the files before it is committed."""
    text = " ".join((DOCS / "models" / f"{page}.md").read_text(encoding="utf-8").split())
    assert any(filled(words, metrics) in text for metrics in (metrics_now(), metrics_committed())), words


def test_no_figure_in_the_text_of_a_models_page_goes_unchecked() -> None:
    for page in figures.models():
        text = (DOCS / "models" / f"{page}.md").read_text(encoding="utf-8").split("## What it does badly")[1]
        checked = sum(words.count("[") for name, words in IN_THE_TEXT if name == page)
        assert len(re.findall(r"\d\.\d\d", text)) == checked, page


def filled(words: str, metrics: dict[str, Any]) -> str:
    try:
        return words.format(**metrics)
    except KeyError:  # a run of other params has other figures
        return words


@cache
def metrics_now() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "metrics").glob("*.json")}


@cache
def metrics_committed() -> dict[str, Any]:
    held = {}
    for name in metrics_now():
        command = ["git", "show", f"HEAD:metrics/{name}.json"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).stdout
        held[name] = json.loads(shown or "{}")
    return held


@cache
def pages() -> dict[str, str]:
    """The pages that are made from the code."""
    return hooks.generated()


def test_the_reference_has_every_verb_every_key_every_column_and_every_metric() -> None:
    from densitywatch.batches.chunks import RESULTS

    assert all(f"\n## {verb}\n" in pages()["reference/cli.md"] for verb in cli_page.verbs())
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    page = pages()["reference/params.md"]
    for block, values in params.items():
        assert f"\n## {block}\n" in page
        inner = values if isinstance(values, dict) and block != "models" else {}
        assert all(f"| `{key}` |" in page or f"### {block}.{key}\n" in page for key in inner), block
    files = pages()["reference/files.md"]
    assert all(f"| `{name}` |" in files for name in [*RESULTS.names, *files_page.metric_keys()])
    assert "load_model(where: str)" in pages()["reference/python.md"]
    assert [
        name for name in ("cli", "params", "files", "python") if "| None |" in pages()[f"reference/{name}.md"]
    ] == []


def test_the_picture_of_the_architecture_is_what_its_script_draws_and_names_files_that_exist() -> None:
    assert architecture.TARGET.read_text(encoding="utf-8") == architecture.draw()
    named = [file for *_, file in architecture.BOXES]
    assert [file for file in named if not exists(file)] == []


@pytest.mark.slow
def test_the_site_is_built_and_a_warning_would_be_an_error(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    assert "densitywatch" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    page = (tmp_path / "site" / "reference" / "cli.html").read_text(encoding="utf-8")
    assert "--follow-links" in page
    outside = re.findall(r'(?:src|href)="(https?://[^"]+)"', page)
    assert [address for address in outside if not address.startswith("https://squidfunk.github.io/")] == []


@pytest.mark.slow
def test_a_broken_link_stops_the_build(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    kept = {key: config[key] for key in ("site_name", "strict", "validation", "theme")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=tmp_path,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
    )
    assert built.returncode != 0
    assert "nowhere.md" in built.stderr
