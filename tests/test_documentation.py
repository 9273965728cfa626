"""What the README and the guides show runs, from the first block of each page to the last."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/guides/programs.md",
    pytest.param("docs/guides/prove_your_sampler.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/compare.md", marks=pytest.mark.slow),
    pytest.param("docs/guides/state_space.md", marks=pytest.mark.slow),
    "docs/methods/chains.md",
    "docs/methods/tempered.md",
    *(
        pytest.param(f"docs/methods/{name}.md", marks=pytest.mark.slow)
        for name in ("particle_filter", "pmmh", "particle_gibbs", "smc2")
    ),
]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf8"), re.S)
    assert blocks
    names: dict = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
