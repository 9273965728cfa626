"""The package list, the links, the versions and the direction of imports."""

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import qbs

ROOT = Path(__file__).resolve().parents[1]
# The import name of each folder that holds code. Nothing here follows the links qbs/inference and qbs/models.
FOLDERS = {"qbs": "qbs", "inference": "qbs.inference", "models": "qbs.models"}
LINKS = {"qbs/inference": "../inference", "qbs/models": "../models"}
MAX_LINES = 400
MAX_CORE_LINES = 3000

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not run from a checkout")


def python_files(folder: str) -> Iterator[Path]:
    for parent, children, names in os.walk(ROOT / folder, followlinks=False):
        children[:] = [child for child in children if not (Path(parent) / child).is_symlink()]
        yield from (Path(parent) / name for name in names if name.endswith(".py"))


def modules() -> dict[str, Path]:
    """Return every module of the library: import name -> file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in python_files(folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


def imports(path: Path, module: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield line and name of each module that a file may import, in whatever part of the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                assert module is not None, f"{path}:{node.lineno}: a relative import outside the library"
                parts = module.split(".")
                up = node.level - (path.name == "__init__.py")
                base = ".".join((*parts[: len(parts) - up], *filter(None, [node.module])))
            # `from package import name` may import the module package.name.
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func).rpartition(".")[2]
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_package_list_is_the_tree():
    listed = project()["tool"]["setuptools"]["packages"]
    tree = [name for name, path in modules().items() if path.name == "__init__.py"]
    assert sorted(listed) == sorted(tree)
    for name, path in modules().items():
        assert (path.parent / "__init__.py").exists(), f"{name} is in a folder without __init__.py"


@pytest.mark.parametrize("link", LINKS)
def test_links(link):
    if not (ROOT / ".git").exists():
        pytest.skip("a source archive has the folders and no links")
    if os.name == "nt" and not (ROOT / link).is_symlink():
        pytest.skip("this checkout was made without links")
    assert os.readlink(ROOT / link) == LINKS[link]
    assert (ROOT / link / "__init__.py").samefile(ROOT / Path(link).name / "__init__.py")
    if shutil.which("git"):
        command = ["git", "ls-files", "--stage", link]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
        if answer:  # empty when git does not know the checkout, or not yet the link
            modes = [line.split()[0] for line in answer.splitlines()]
            assert modes == ["120000"], f"git keeps {link} as something else than a link"


def test_versions_agree():
    version = project()["project"]["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [version]
    headings = re.findall(r"^## \[(\d.+?)\]", changelog, re.MULTILINE)
    assert headings[0] == version
    assert qbs.__version__ == version, "reinstall with `pip install --editable '.[dev]'`"


def test_modules_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_the_core_is_small():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in python_files("qbs")]
    assert sum(lengths) < MAX_CORE_LINES


def test_imports_point_one_way():
    doors = {"qbs", "qbs.cli", "qbs.validate"}
    wrong = []
    for name, path in modules().items():
        if is_in(name, "qbs.models") or name in doors:
            continue
        forbidden = ["qbs.models"] if is_in(name, "qbs.inference") else ["qbs.inference", "qbs.models"]
        for line, imported in imports(path, name):
            if any(is_in(imported, package) for package in forbidden):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {imported}")
    assert wrong == []


def test_nothing_imports_the_folders_by_name():
    files = [(path, name) for name, path in modules().items()]
    files += [(path, None) for folder in ("tests", "benchmarks") for path in python_files(folder)]
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path, name in files
        for line, imported in imports(path, name)
        if is_in(imported, "inference") or is_in(imported, "models")
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("import qbs.models.cosmology", "qbs.a", ["qbs.models.cosmology"]),
        ("def f():\n    from qbs import models", "qbs.a", ["qbs.models"]),
        ("from . import inference", "qbs.a", ["qbs.inference"]),
        ("from ..models import x", "qbs.inference.a", ["qbs.models.x"]),
        ("importlib.import_module('models.x')", "qbs.a", ["models.x"]),
    ],
)
def test_import_reader(tmp_path, source, module, expected):
    path = tmp_path / "a.py"
    path.write_text(source)
    assert [name for _, name in imports(path, module)] == expected


def test_notebooks_carry_no_output():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{path.name} holds output: clear it before committing"
            assert cell.get("execution_count") is None, path.name
