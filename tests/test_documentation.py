"""What the README and the guides show runs, from the first block of each page to the last."""

import dataclasses
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qbs.cli import app
from qbs.inference import mcmc, nested, smc
from qbs.inference.method import Method

ROOT = Path(__file__).parents[1]
FOLDERS = ("qbs", "inference", "models")
PAGES = [
    "README.md",
    "docs/guides/programs.md",
    pytest.param("docs/guides/prove_your_sampler.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/compare.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/state_space.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/unknown_dimension.md", marks=pytest.mark.slow),
    "docs/guides/long_runs.md",
    "docs/guides/slow_likelihoods.md",
    "docs/guides/surrogates.md",
    "docs/guides/unnormalized.md",
    "docs/guides/which_sampler.md",
    "docs/guides/learn_a_dag.md",
    "docs/architecture.md",
    "docs/methods/chains.md",
    pytest.param("docs/methods/tempered.md", marks=pytest.mark.slow),
    *(
        pytest.param(f"docs/methods/{name}.md", marks=pytest.mark.slow)
        for name in ("particle_filter", "pmmh", "particle_gibbs", "resample_move", "smc2")
    ),
]
METHODS = [
    value
    for package in (mcmc, nested, smc)
    for value in vars(package).values()
    if isinstance(value, type) and issubclass(value, Method)
]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def run_blocks(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf8"), re.S)
    assert blocks
    names: dict = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


@pytest.mark.slow
def test_cosmology_in_an_afternoon(tmp_path, monkeypatch):
    """Its commands, then what it does with their output."""
    monkeypatch.chdir(tmp_path)
    page = "docs/guides/cosmology_afternoon.md"
    command = "qbs cosmology --example desi_cmb_union3"
    assert f"{command} > run.yaml" in (ROOT / page).read_text(encoding="utf8")
    example = CliRunner().invoke(app, command.split()[1:])
    (tmp_path / "run.yaml").write_text(example.stdout)
    done = CliRunner().invoke(app, ["cosmology", "run.yaml"])
    assert done.exit_code == 0, done.output
    run_blocks(page)
    assert (tmp_path / "runs" / "w0wa.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_setting_stands_in_the_table_of_its_page(method):
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", method.__name__).lower()
    text = (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) ?\|", text.split("## Settings")[1].split("\n## ")[0], re.M)
    wanted = {
        field.name: "" if field.default is dataclasses.MISSING else repr(field.default).replace("'", '"')
        for field in dataclasses.fields(method)
    }
    assert {setting: default.strip("`") for setting, default in rows} == wanted


def test_every_module_stands_in_the_table_of_the_architecture():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf8")
    listed = set()
    for row in re.findall(r"^\| (`\w+/.*?) \|", text.split("Module by module")[1], re.M):
        first, *others = re.findall(r"`(.+?)`", row)
        listed |= {first, *(f"{first.rpartition('/')[0]}/{other}" for other in others)}
    assert not [name for name in listed if not (ROOT / name).exists()]
    modules = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py" and not any(parent.is_symlink() for parent in path.parents)
    }
    folders = tuple(name for name in listed if name.endswith("/"))
    assert sorted(name for name in modules if name not in listed and not name.startswith(folders)) == []
