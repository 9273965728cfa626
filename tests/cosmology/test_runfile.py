"""Run files: what is accepted, and one sentence with the line for what is not."""

import dataclasses
from pathlib import Path

import pytest

from qbs.errors import RunFileError
from qbs.inference.mcmc import NUTS
from qbs.inference.nested import Dynesty, Slice
from qbs.models.cosmology.likelihoods import DATA_SETS
from qbs.models.cosmology.methods import METHODS
from qbs.models.cosmology.parameters import DERIVED, MODELS, PARAMETERS
from qbs.models.cosmology.run import analyses
from qbs.models.cosmology.run_file_examples import EXAMPLES
from qbs.models.cosmology.runfile import EXAMPLE, RunFile, parse_run_file, read_run_file
from qbs.models.cosmology.shared_data import overlaps

_START = "models: [LCDM]\ndata: [cc]\n"


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
    listed = {line.split()[1] for line in EXAMPLE.splitlines() if line.startswith("#   ") and line[4] != " "}
    assert {*MODELS, *DATA_SETS, *PARAMETERS, *DERIVED, *METHODS} <= listed
    assert max(map(len, EXAMPLE.splitlines())) <= 110


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_other_examples_are_accepted(name):
    run_file = parse_run_file(EXAMPLES[name], name)
    if name != "all_keys":
        assert name in EXAMPLE
        assert run_file.output == Path("runs") / name
        assert run_file.priors["mnu"] == 0.06
    light = tuple(name for name in run_file.data if name not in ("pantheon_plus", "des_sn5yr"))
    found = analyses(dataclasses.replace(run_file, data=light))
    assert list(found) == ["LCDM", "CPL"]
    assert found["CPL"].parameters == ("Om", "Obh2", "h", "w", "wa")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_name_and_refuses_what_it_does_not_know(name):
    run_file = parse_run_file(f"{_START}method: {name}\n")
    assert type(run_file.method) is METHODS[name]
    with pytest.raises(RunFileError, match=f"line 3: {name} has no setting 'nonsense'; accepted: "):
        parse_run_file(f"{_START}method: {{name: {name}, nonsense: 1}}\n")


def test_settings_are_plain_values():
    """YAML's own kinds of numbers do not reach the method, and so not its fingerprint either."""
    method = parse_run_file(f"{_START}method: {{name: slice, num_live: 200, dlogz: 1e-2}}\n").method
    assert method == Slice(num_live=200, dlogz=0.01)
    assert (type(method.num_live), type(method.dlogz)) == (int, float)


def test_tensions():
    text = _START + "tension: [[desi_dr2, cc], [[desi_dr2, bbn], union3]]\n"
    pairs = parse_run_file(text).tension
    assert pairs == ((("desi_dr2",), ("cc",)), (("desi_dr2", "bbn"), ("union3",)))
    assert parse_run_file(_START + "tension:\n").tension == ()
    # A prior on a parameter that only a side of a tension has is for that side.
    found = analyses(parse_run_file(text + "priors: {Obh2: [0.021, 0.023]}\n"))
    assert found["LCDM"].parameters == ("Om", "h")


@pytest.mark.parametrize(
    ("data", "pairs"),
    [
        (("cc", "desi_dr2", "bbn", "union3", "cmb_thetastar", "fsigma8", "h0"), []),
        (("cc", "cc_31", "cc_32"), [("cc", "cc_31"), ("cc", "cc_32"), ("cc_31", "cc_32")]),
        (
            ("desi_dr2", "desi_dr1", "sdss"),
            [("desi_dr2", "desi_dr1"), ("desi_dr2", "sdss"), ("desi_dr1", "sdss")],
        ),
        (("des_sn5yr", "union3"), [("des_sn5yr", "union3")]),
        (("pantheon_plus_sh0es", "h0"), [("pantheon_plus_sh0es", "h0")]),
        (("pantheon_plus", "pantheon_plus_sh0es"), [("pantheon_plus", "pantheon_plus_sh0es")]),
        (("cmb_shift", "bbn", "cmb_thetastar"), [("cmb_shift", "cmb_thetastar")]),
    ],
)
def test_overlaps(data, pairs):
    assert [(found.first, found.second) for found in overlaps(data)] == pairs
    text = f"models: [LCDM]\ndata: [{', '.join(data)}]\n"
    if pairs:
        with pytest.raises(
            RunFileError, match=f"line 2: {pairs[0][0]} and {pairs[0][1]} overlap: .*allow_overlap"
        ):
            parse_run_file(text)
        text += "allow_overlap: true\n"
    assert parse_run_file(text).data == data


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
        (_START + "method: {name: emcee}\n", 3, "unknown method 'emcee'; accepted: dynesty, slice"),
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
        (
            _START + "method: {name: slice, batch: 600}\n",
            3,
            "batch is 600.*settings of slice: num_live, batch",
        ),
        (_START + "method: {name: slice, batch: {of: 3}}\n", 3, "the setting batch of slice cannot be"),
        (_START + "allow_overlap: perhaps\n", 3, "`allow_overlap` must be true or false, not 'perhaps'"),
        (_START + "tension: [[cc, bbn, h0]]\n", 3, "must be a list of pairs, such as"),
        (_START + "tension: cc\n", 3, "must be a list of pairs, such as"),
        (_START + "tension: [[cc, cc]]\n", 3, "cc stands on both sides of a pair"),
        (_START + "tension: [[cc, []]]\n", 3, "a side of a pair must be a data set or a list of them"),
        (_START + "tension: [[cc, dez]]\n", 3, "unknown data set 'dez'; accepted"),
        (_START + "tension: [[[bbn, bbn], cc]]\n", 3, "names one data set twice on a side"),
        (_START + "tension: [[cc, bbn], [cc, bbn]]\n", 3, "names one pair twice"),
        (_START + "tension: [[cc, cc_31]]\n", 3, "cc and cc_31 overlap"),
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
