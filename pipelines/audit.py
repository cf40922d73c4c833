"""Known vulnerabilities and licences of every package of the lock files: `python -m pipelines audit` (`make audit`).

Vulnerabilities are asked of PyPI's service by pip-audit, which tells it names and versions and nothing else. Licences
are read from the installed packages. licences.toml says which are allowed, and why a package is that has another one.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from densitywatch.errors import DataError, DensitywatchError
from densitywatch.params import first_problem
from densitywatch.text import one_line, visible

LOCKS = ("requirements.lock", "requirements-dev.lock")
RULES = "licences.toml"
SECONDS = 600
NOT_ASKED = 3
"""The exit code where nothing wrong was found, and not every package could be asked about."""


class Rules(BaseModel):
    """What licences.toml says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    allowed: list[str]
    """SPDX identifiers."""
    names: dict[str, str]
    """What packages call a licence, and the SPDX expression that is meant."""
    stated: dict[str, str] = {}
    """The licence of a package whose metadata do not say it, as its own files do."""
    exceptions: dict[str, str] = {}
    """Packages with another licence, each with the reason why it may be used; `*` stands for the rest of a name."""
    vulnerabilities: dict[str, str] = {}
    """Identifiers of known vulnerabilities that do not concern this project, each with the reason."""


@dataclass(frozen=True)
class Found:
    """A package whose licence is not allowed."""

    package: str
    licence: str


@dataclass
class Asked:
    """What the service of known vulnerabilities said."""

    answered: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Packages that it does not know, so nothing is known about them."""
    known: list[str] = field(default_factory=list)
    """A line for each known vulnerability."""


class ServiceDidNotAnswer(DensitywatchError):
    """The service of known vulnerabilities could not be asked."""

    exit_code = NOT_ASKED


def read_rules(path: Path) -> Rules:
    """Raises DataError where the file is missing or does not fit."""
    try:
        return Rules.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path}: not there; it says which licences are allowed") from None
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from None
    except ValueError as error:
        raise DataError(f"{path}: {one_line(error)}") from None


def plain_name(name: str) -> str:
    """A package's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(path: Path) -> dict[str, str]:
    """Name and version of each package in a lock file."""
    lines = re.findall(r"(?m)^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", path.read_text(encoding="utf-8"))
    return {plain_name(name): version for name, version in lines}


def licence_of(about: Any) -> str:
    """What a package's metadata say of its licence: an SPDX expression, names of classifiers, or a first line."""
    if expression := about.get("License-Expression"):
        return str(expression)
    classified = [
        line.rpartition("::")[2].strip()
        for line in about.get_all("Classifier") or []
        if line.startswith("License ::") and line.rpartition("::")[2].strip() not in ("OSI Approved", "DFSG approved")
    ]
    if classified:
        return " AND ".join(sorted(classified))
    return str(about.get("License") or "").strip().partition("\n")[0][:100]


def is_allowed(licence: str, rules: Rules) -> bool:
    """Whether an SPDX expression can be met by allowed licences alone: one side of an OR, both sides of an AND."""
    from license_expression import ExpressionError, get_spdx_licensing

    spdx = get_spdx_licensing()
    try:
        parsed = spdx.parse(licence)
    except (ExpressionError, AttributeError):
        return False

    def met(part: Any) -> bool:
        if part.isliteral:
            return str(part) in rules.allowed
        sides = [met(side) for side in part.args]
        return any(sides) if isinstance(part, spdx.OR) else all(sides)

    return parsed is not None and met(parsed)


def in_spdx(licence: str, rules: Rules) -> str:
    """The expression that is meant by what a package says."""
    if licence in rules.names:
        return rules.names[licence]
    parts = licence.split(" AND ")
    return " AND ".join(f"({rules.names.get(part, part)})" if part in rules.names else part for part in parts)


def unfit_licences(packages: Mapping[str, Any], rules: Rules) -> list[Found]:
    """The packages, by name and metadata, whose licence is not allowed and that are no exception."""
    found = []
    for name, about in sorted(packages.items()):
        licence = rules.stated.get(name) or in_spdx(licence_of(about), rules)
        if not is_exception(name, rules) and not is_allowed(licence, rules):
            found.append(Found(name, licence or "none that its metadata name"))
    return found


def is_exception(name: str, rules: Rules) -> bool:
    """Whether a package may have any licence; `*` in an entry stands for the rest of a name."""
    return any(fnmatchcase(name, pattern) for pattern in rules.exceptions)


def unused(packages: Mapping[str, Any], rules: Rules, names: Sequence[str]) -> list[str]:
    """Entries of licences.toml that no locked package needs, as it is gone or has an allowed licence by itself.

    `packages`: those that are installed here; `names`: all of the lock files, some of them for other systems.
    """

    def needed(pattern: str) -> bool:
        mine = [name for name in names if fnmatchcase(name, pattern)]
        here = [name for name in mine if name in packages]
        return bool(mine) and (len(here) < len(mine) or any(not allowed(name) for name in here))

    def allowed(name: str) -> bool:
        return is_allowed(rules.stated.get(name) or in_spdx(licence_of(packages[name]), rules), rules)

    return sorted({*(set(rules.stated) - set(names)), *(name for name in rules.exceptions if not needed(name))})


def ask(locks: Sequence[Path], rules: Rules) -> Asked:
    """Ask the service about every package of the lock files that this system would install.

    Raises ServiceDidNotAnswer where it does not answer at all.
    """
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes"]
    for lock in locks:
        command += ["--requirement", str(lock)]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    for name in sorted(rules.vulnerabilities):
        command += ["--ignore-vuln", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise ServiceDidNotAnswer(
            f"the service of known vulnerabilities did not answer in {SECONDS} seconds; try again later"
        ) from None
    try:
        asked = Asked()
        for package in json.loads(done.stdout)["dependencies"]:
            name = plain_name(package["name"])
            (asked.unknown if "skip_reason" in package else asked.answered).append(name)
            for each in package.get("vulns") or []:
                asked.known.append(
                    f"{name} {package['version']}: {each['id']}, {_mended(each.get('fix_versions') or [])}"
                )
    except (ValueError, LookupError, TypeError, AttributeError):
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit {done.returncode}")
        raise ServiceDidNotAnswer(
            f"the service of known vulnerabilities cannot be asked ({visible(said)[:200]}); look at the connection and"
            " try again"
        ) from None
    return asked


def _mended(versions: Sequence[str]) -> str:
    return f"mended in {', '.join(versions)}" if versions else "mended in no version yet"


def _installed(names: Sequence[str]) -> dict[str, Any]:
    """Metadata of the locked packages that are installed here; some are for other systems."""
    found = {plain_name(each.metadata["Name"]): each.metadata for each in metadata.distributions()}
    return {name: found[name] for name in names if name in found}


def main(arguments: list[str]) -> int:
    """Exit code 0: all were asked about and nothing was found; 1: something was; 3: some could not be asked about."""
    if arguments:
        print("usage: python -m pipelines audit", file=sys.stderr)
        return 2
    root = Path.cwd()
    try:
        return _audit(root)
    except DensitywatchError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        return error.exit_code


def _audit(root: Path) -> int:
    rules = read_rules(root / RULES)
    names = {name: version for lock in LOCKS for name, version in locked(root / lock).items()}
    packages = _installed(sorted(names))
    unfit, needless = unfit_licences(packages, rules), unused(packages, rules, list(names))
    for each in unfit:
        print(f"licence not allowed: {each.package}: {visible(each.licence)}")
    for name in needless:
        print(f"{RULES}: the entry {name} is not needed any more; remove it")
    excepted = sum(is_exception(name, rules) for name in packages)
    print(f"licences of {len(packages)} packages: {len(unfit)} not allowed, {excepted} allowed by an exception")
    asked, trouble = Asked(), None
    try:
        asked = ask([root / lock for lock in LOCKS], rules)
    except ServiceDidNotAnswer as error:
        trouble = error
    for line in asked.known:
        print(f"known vulnerability: {visible(line)}")
    if trouble is not None:
        print(f"pipelines: {trouble}", file=sys.stderr)
    else:
        print(f"known vulnerabilities of {len(asked.answered)} packages: {len(asked.known)}")
    if asked.unknown:
        print(
            f"pipelines: the service does not know {len(asked.unknown)} of {len(asked.answered) + len(asked.unknown)}"
            f" packages, such as {visible(asked.unknown[0])}, so nothing is known about them; is it PyPI's?",
            file=sys.stderr,
        )
    if unfit or needless or asked.known:
        return 1
    return NOT_ASKED if asked.unknown or trouble else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
