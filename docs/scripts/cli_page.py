"""The page of the command line, made from the verbs themselves."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any, get_args

from docs.scripts.from_code import cell, first_sentence

VALUES = {str: "TEXT", int: "N", float: "NUMBER", Path: "PATH"}
"""What an option's value is called."""


def verbs() -> dict[str, set[str]]:
    """Every verb with its options."""
    import typer

    from densitywatch.cli import app

    group: Any = typer.main.get_command(app)
    return {
        name: {o for p in verb.params for o in (*p.opts, *p.secondary_opts)} for name, verb in group.commands.items()
    }


def page() -> str:
    """Every verb with its arguments, options and examples."""
    import typer

    from densitywatch.cli import app

    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line\n",
        "Made from `src/densitywatch/cli.py`. Run the verbs from the project's top folder. Exit codes: 0 done, 1 a"
        " failure named in one line on stderr, 2 wrong usage; 130, 143 or 129 when stopped by Ctrl-C, SIGTERM or"
        " SIGHUP.\n",
        "| verb | does |\n|---|---|",
    ]
    for name, command in group.commands.items():
        parts.append(f"| [`{name}`](#{name}) | {first_sentence(command.help)} |")
    parts.append("\n## Before any verb\n\n" + options_table(group))
    for name, command in group.commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        shown = " ".join(usage_name(a) for a in arguments)
        parts.append(f"\n## {name}\n")
        words = ("densitywatch", name, "[OPTIONS]" if has_options(command) else "", shown)
        parts.append(f"```text\n{' '.join(word for word in words if word)}\n```")
        parts.append("\n" + inspect.cleandoc(command.help or "") + "\n")
        table = options_table(command)
        if table:
            parts.append(table)
        examples = re.sub(r"^Examples?:\s*", "", (command.epilog or "").replace("\b", "")).strip()
        if examples:
            lines = [line.strip() for line in examples.replace("; ", "\n").splitlines()]
            parts.append("\n```sh\n" + "\n".join(lines) + "\n```")
    return "\n".join(parts) + "\n"


def has_options(command: Any) -> bool:
    return any(p.param_type_name == "option" and p.name != "help" for p in command.params)


def usage_name(argument: Any) -> str:
    name = str(argument.name).upper()
    return name if argument.required else f"[{name}]"


def value_of(annotation: Any) -> str:
    """What stands for an option's value: a word for its type, or the words that it may be."""
    words = get_args(annotation)
    return "\\|".join(words) if words else VALUES[annotation]


def options_table(command: Any) -> str:
    """Arguments and options as a table; empty where there are none."""
    rows = []
    for p in command.params:
        if p.name == "help":
            continue
        if p.param_type_name == "argument":
            name = f"`{usage_name(p)}`"
        else:
            value = "" if p.is_flag else f" {p.metavar or value_of(p.type_descriptor.annotation)}"
            names = [*p.opts, *p.secondary_opts]
            name = ", ".join(f"`{n}{value}`" for n in names)
        default = "" if p.default in (None, False, ...) or p.param_type_name == "argument" else f"`{p.default}`"
        rows.append(f"| {name} | {cell(p.help or '')} | {default} |")
    return "| argument or option | what it is | default |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
