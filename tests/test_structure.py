"""Imports point one way; names that the command line promises exist."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from symscale.__main__ import COMMANDS

SRC = Path(__file__).parents[1] / "src/symscale"


def imported(path):
    """Top-level module names that a file imports, at any depth of its code."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offenders(folder, forbidden):
    files = [SRC / folder] if folder.endswith(".py") else sorted((SRC / folder).rglob("*.py"))
    assert files
    return [
        f"{file.relative_to(SRC)}: {name}"
        for file in files
        for name in imported(file)
        if any(name == bad or name.startswith(bad + ".") for bad in forbidden)
    ]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        (".", ["snakemake", "submitit", "snakemake_executor_plugin_submitit"]),
        ("cells.py", ["torch", "numpy", "yaml", "symscale.models", "symscale.train"]),
        ("analysis", ["torch", "symscale.models", "symscale.train", "symscale.run", "symscale.figures"]),
        (
            "figures",
            ["torch", *(f"symscale.analysis.{m}" for m in ("solver", "intervals", "records", "sweep"))],
        ),
        ("data", ["symscale.models", "symscale.train", "symscale.run", "symscale.analysis"]),
        ("models", ["symscale.train", "symscale.run", "symscale.data.pack", "symscale.data.loader"]),
    ],
)
def test_imports_point_one_way(folder, forbidden):
    """cells <- data, models <- train; analysis without torch; figures never fit."""
    assert offenders(folder, forbidden) == []


@pytest.mark.parametrize(
    "module", ["symscale.analysis", "symscale.cells", "symscale.workflow", "symscale.status"]
)
def test_light_modules_do_not_pull_torch_in(module):
    """Snakemake and the analysis start fast, and run where no torch is."""
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_command_has_its_module_and_no_module_is_forgotten():
    """COMMANDS and the files of symscale/commands agree."""
    files = {f.stem for f in (SRC / "commands").glob("*.py")} - {"__init__"}
    assert files == {name.replace("-", "_") for name in COMMANDS}


def test_documented_snakemake_commands_name_their_target_before_the_config():
    """`snakemake --configfile C all` takes `all` for a second config file: the option eats what follows it."""
    root = SRC.parents[1]
    texts = [
        root / "README.md",
        root / "Makefile",
        *(root / "docs").glob("*.md"),
        *(root / "config").glob("*.yaml"),
    ]
    commands = [c for t in texts for c in re.findall(r"snakemake [^`\n]*--configfile[^`\n]*", t.read_text())]
    assert len(commands) > 5
    assert [c for c in commands if re.search(r"--configfile[ =]\S+ +[a-z/]", c)] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    """`symscale X --help` works for each."""
    from symscale.__main__ import main

    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0 and "usage: symscale " + name in capsys.readouterr().out
