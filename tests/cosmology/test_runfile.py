"""Run files: what is accepted, and one sentence with the line for what is not."""

from pathlib import Path

import pytest

from qbs.errors import RunFileError
from qbs.inference.mcmc import NUTS
from qbs.inference.nested import Dynesty
from qbs.models.cosmology.runfile import EXAMPLE, RunFile, parse_run_file, read_run_file


def test_the_example_is_what_it_says():
    run_file = parse_run_file(EXAMPLE)
    assert run_file == RunFile(
        models=("LCDM", "CPL"),
        data=("cc", "desi_dr2", "bbn"),
        priors={"Om": [0.1, 0.5], "h": [0.4, 0.9]},
        method=Dynesty(num_live=500, dlogz=0.01),
        seed=1,
        output=Path("runs/desi"),
    )
    assert "pantheon_plus" in EXAMPLE
    assert "h0" in EXAMPLE


def test_every_form_of_every_key(tmp_path):
    run_file = parse_run_file(f"""
models: oCPL
data: [desi_dr2]
data_path: {tmp_path}
priors:
  Om: {{normal: [0.3, 0.01]}}
  h: 0.7
  w: [-2, 0]
sound_horizon: free
method: {{name: nuts, num_chains: 2, dense_mass: true}}
seed: 7
figures: [svg]
output: out
""")
    assert run_file.models == ("oCPL",)
    assert run_file.data_path == tmp_path
    assert run_file.priors == {"Om": {"normal": [0.3, 0.01]}, "h": 0.7, "w": [-2, 0]}
    assert run_file.method == NUTS(num_chains=2, dense_mass=True)
    assert run_file.sound_horizon == "free"
    assert run_file.figures == ("svg",)
    assert parse_run_file("models: [LCDM]\ndata: [cc]\nmethod: nuts\n").method == NUTS()


_START = "models: [LCDM]\ndata: [cc]\n"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("models: [LCDM\n", None, "not valid YAML"),
        ("- LCDM\n", None, "a run file is a list of"),
        ("", None, "a run file is a list of"),
        ("models: [LCDM]\n", None, "the key `data` is missing"),
        ("data: [cc]\n", None, "the key `models` is missing"),
        (
            "data: [cc]\nmodels: [LCMD]\n",
            2,
            r"unknown model 'LCMD'; accepted: LCDM, wCDM, CPL.*did you mean LCDM",
        ),
        ("models: [LCDM]\ndata: [cc, desi]\n", 2, "unknown data set 'desi'; accepted: cc, desi_dr2, bbn"),
        ("models: []\ndata: [cc]\n", 1, "`models` must be a list of names"),
        ("models: {LCDM: 1}\ndata: [cc]\n", 1, "`models` must be a list of names"),
        ("models: [LCDM, LCDM]\ndata: [cc]\n", 1, "names one model twice"),
        (_START + "outptu: x\n", 3, "unknown key 'outptu'; accepted: .*did you mean output"),
        (_START + "priors: {Om: [0.5, 0.1]}\n", 3, r"prior of Om is not valid: \[0.5, 0.1\].*low < high"),
        (
            _START + "priors:\n  h: [0.4, 0.9]\n  Om: {normal: [0.3, -1]}\n",
            5,
            "prior of Om is not valid.*sd > 0",
        ),
        (_START + "priors: {Omega: [0, 1]}\n", 3, "unknown parameter 'Omega'; accepted: Om, Obh2, h"),
        (_START + "priors: {Om: wide}\n", 3, "prior of Om is not valid: 'wide'"),
        (_START + "priors: {Om: [0.1, .inf]}\n", 3, "prior of Om is not valid"),
        (_START + "priors: [Om]\n", 3, "`priors` must be a list of `parameter: prior`"),
        (_START + "method: {name: emcee}\n", 3, "unknown method 'emcee'; accepted: dynesty, nuts"),
        (_START + "method: {num_live: 10}\n", 3, "needs a name"),
        (_START + "method: {name: dynesty, nlive: 10}\n", 3, "no setting 'nlive'.*did you mean num_live"),
        (
            _START + "method:\n  name: dynesty\n  num_live: -5\n",
            3,
            "num_live must be a whole number above 0, not -5",
        ),
        (_START + "seed: one\n", 3, "`seed` must be a whole number from 0 up, not 'one'"),
        (_START + "seed: -1\n", 3, "`seed` must be a whole number"),
        (_START + "sound_horizon: fixed\n", 3, "accepted: formula, free"),
        (_START + "data_path: /no/such/folder\n", 3, "there is no folder /no/such/folder"),
        (_START + "output: 3\n", 3, "`output` must be the path of a folder, not 3"),
        (_START + "figures: [gif]\n", 3, "unknown figure format 'gif'; accepted: png, pdf, svg"),
        (_START + "seed: 1\nseed: 2\n", 4, "not valid YAML.*duplicate key"),
    ],
)
def test_mistakes_are_one_sentence_with_the_line(text, line, words):
    place = f"run.yaml line {line}: " if line else "run.yaml.*: "
    with pytest.raises(RunFileError, match=f"^{place}.*{words}") as caught:
        parse_run_file(text, "run.yaml")
    assert "\n" not in str(caught.value)


def test_missing_or_unreadable_files(tmp_path):
    with pytest.raises(RunFileError, match=r"no run file .*--example"):
        read_run_file(tmp_path / "run.yaml")
    with pytest.raises(RunFileError, match="cannot read"):
        read_run_file(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunFileError, match=r"cannot read|not valid YAML"):
        read_run_file(binary)
