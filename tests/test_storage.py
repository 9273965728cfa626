"""Saved posteriors: everything comes back, damage is told, and an existing file is never harmed."""

import io
import json
import math
import os
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

import qbs
from qbs.errors import PosteriorFileError
from qbs.inference.results.storage import FORMAT_VERSION, load

SEED = 20240229


def _full():
    rng = np.random.default_rng(SEED)
    log_weights = rng.normal(size=(2, 9))
    log_weights[0, 0] = -np.inf
    return qbs.Posterior(
        samples={
            "x": rng.normal(size=(2, 9)),
            "outer/inner": rng.normal(size=(2, 9, 3, 2)).astype(np.float32),
            "../up": rng.integers(0, 9, (2, 9)),
            "Größe µ 温度": rng.normal(size=(2, 9)) > 0,
            'quotes " and \\ and \n': np.full((2, 9), np.nan),
            "samples/x": np.full((2, 9), np.inf),
            "none": np.zeros((2, 9, 0)),
        },
        log_weights=log_weights,
        log_evidence=-1234.5678901234567,
        log_evidence_error=0.1,
        num_likelihood_calls=2**40,
        problems=["One: 温度 is too high.", ""],
        derived=("../up", "outer/inner"),
        stats={"log_likelihood": rng.normal(size=(2, 9)), "diverging": rng.uniform(size=(2, 9)) < 0.5},
        provenance={"seed": [1, 2], "settings": {"a": 0.1, "b": None, "c": True}, "text": "é", "big": 2**60},
    )


def _require_equal(found, expected):
    for group in ("samples", "stats"):
        ours, theirs = getattr(found, group), getattr(expected, group)
        assert list(ours) == list(theirs)
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_array_equal(ours[name], theirs[name])
    np.testing.assert_equal(found.log_weights, expected.log_weights)
    for field in (
        "log_evidence",
        "log_evidence_error",
        "num_likelihood_calls",
        "problems",
        "derived",
        "provenance",
    ):
        np.testing.assert_equal(getattr(found, field), getattr(expected, field))
        assert type(getattr(found, field)) is type(getattr(expected, field))


@pytest.fixture
def saved(tmp_path):
    """A small valid file."""
    draws = np.random.default_rng(SEED).normal(size=(1, 5))
    posterior = qbs.Posterior({"x": draws, "y": 2 * draws}, problems=["one"], provenance={"seed": [3]})
    return posterior, posterior.save(tmp_path / "small.qbs")


# Round trips


def test_everything_comes_back(tmp_path):
    posterior = _full()
    path = posterior.save(tmp_path / "run.qbs")
    assert path == tmp_path / "run.qbs"
    _require_equal(load(path), posterior)
    _require_equal(qbs.load(str(path)), posterior)
    assert os.listdir(tmp_path) == ["run.qbs"]


def test_a_bare_posterior_comes_back(tmp_path):
    posterior = qbs.Posterior({"x": np.zeros((1, 1))})
    found = load(posterior.save(str(tmp_path / "bare")))
    _require_equal(found, posterior)
    assert found.log_weights is None
    assert found.log_evidence is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 5e-324, 1 / 3])
def test_extreme_numbers_come_back(tmp_path, value):
    posterior = qbs.Posterior({"x": np.array([[value]])}, log_evidence=value, provenance={"wall": value})
    _require_equal(load(posterior.save(tmp_path / "run.qbs")), posterior)


def test_numbers_of_numpy_and_jax_become_pythons(tmp_path):
    provenance = {"a": np.int64(3), "b": np.float32(0.5), "c": jnp.asarray(2), "d": np.bool_(True)}
    posterior = qbs.Posterior({"x": np.zeros((1, 2))}, log_evidence=np.float64(-2), provenance=provenance)
    found = load(posterior.save(tmp_path / "run.qbs"))
    assert found.provenance == {"a": 3, "b": 0.5, "c": 2, "d": True}
    assert found.log_evidence == -2


def test_a_loaded_posterior_works(tmp_path):
    posterior = _full()
    found = load(posterior.save(tmp_path / "run.qbs"))
    assert found.ess == posterior.ess
    np.testing.assert_array_equal(found.resample(5)["x"], posterior.resample(5)["x"])
    assert repr(found) == repr(posterior)


def test_the_arrays_are_plain_numpy_files(saved):
    """Readable without qbs."""
    posterior, path = saved
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json"))
        x = np.load(io.BytesIO(archive.read("0.npy")), allow_pickle=False)
    assert header["arrays"][0]["name"] == "samples/x"
    np.testing.assert_array_equal(x, posterior.samples["x"])


# Damage


def test_a_file_cut_short_is_refused_at_every_length(saved, tmp_path):
    data, cut = saved[1].read_bytes(), tmp_path / "cut.qbs"
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        with pytest.raises(PosteriorFileError, match=r"cut\.qbs"):
            load(cut)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80, 0xFF])
def test_a_changed_byte_is_refused_or_does_not_matter(saved, tmp_path, mask):
    posterior, path = saved
    data, changed = bytearray(path.read_bytes()), tmp_path / "changed.qbs"
    refused = 0
    for position in range(len(data)):
        data[position] ^= mask
        changed.write_bytes(data)
        data[position] ^= mask
        try:
            found = load(changed)
        except PosteriorFileError:
            refused += 1
        else:
            _require_equal(found, posterior)
    # The rest are times, attributes and the local copies of what the directory at the end says.
    assert refused > 0.7 * len(data)


def test_bytes_before_and_after_do_not_matter(saved, tmp_path):
    """As in every zip archive: what is read is found from its end."""
    posterior, path = saved
    for data in (path.read_bytes() + b"tail", b"head" + path.read_bytes()):
        (tmp_path / "longer.qbs").write_bytes(data)
        _require_equal(load(tmp_path / "longer.qbs"), posterior)


def _rewrite(path, **changes):
    """Write the archive again with another header, and no error in the archive itself."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members["header.json"])
    header |= changes
    header = {name: value for name, value in header.items() if value is not ...}
    members["header.json"] = json.dumps(header).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "another program"}, "header is of another program"),
        ({"format": ...}, "header is of another program"),
        ({"format_version": FORMAT_VERSION + 1}, f"format version {FORMAT_VERSION + 1}.*update qbs"),
        ({"format_version": ...}, "damaged.*format_version"),
        ({"format_version": "one"}, "damaged"),
        ({"arrays": ...}, "damaged.*arrays"),
        ({"arrays": []}, "damaged.*at least one parameter"),
        ({"arrays": [{"name": "samples/x", "sha256": "0" * 64}]}, "checksum of 'samples/x' does not match"),
        ({"arrays": [{"name": "samples/x"}]}, "damaged.*sha256"),
        ({"derived": ...}, "damaged.*derived"),
        ({"derived": ["z"]}, "damaged.*derived names"),
        ({"problems": ...}, "damaged.*problems"),
    ],
)
def test_a_wrong_header_is_explained(saved, changes, words):
    _rewrite(saved[1], **changes)
    with pytest.raises(PosteriorFileError, match=words):
        load(saved[1])


def test_a_missing_array_is_explained(saved, tmp_path):
    with zipfile.ZipFile(saved[1]) as archive, zipfile.ZipFile(tmp_path / "less.qbs", "w") as less:
        less.writestr("header.json", archive.read("header.json"))
    with pytest.raises(PosteriorFileError, match=r"damaged.*0\.npy"):
        load(tmp_path / "less.qbs")


def test_arrays_that_changed_places_are_refused(saved, tmp_path):
    with zipfile.ZipFile(saved[1]) as archive, zipfile.ZipFile(tmp_path / "swap.qbs", "w") as swap:
        for name, source in {"header.json": "header.json", "0.npy": "1.npy", "1.npy": "0.npy"}.items():
            swap.writestr(name, archive.read(source))
    with pytest.raises(PosteriorFileError, match="checksum of 'samples/x'"):
        load(tmp_path / "swap.qbs")


def test_a_pickle_inside_is_never_run(tmp_path):
    """A file with a valid checksum of an array that would run code when it is read."""
    import hashlib

    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    buffer = io.BytesIO()
    np.save(buffer, np.array([[Bomb()]], dtype=object), allow_pickle=True)
    path = qbs.Posterior({"x": np.zeros((1, 1))}).save(tmp_path / "bomb.qbs")
    entry = {"name": "samples/x", "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json")) | {"arrays": [entry]}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("0.npy", buffer.getvalue())
    with pytest.raises(PosteriorFileError, match="damaged"):
        load(path)
    assert not (tmp_path / "exploded").exists()


# Other files


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other"
    for data in (b"", b"x,y\n1,2\n", b"\x00" * 500, b"PK\x03\x04 and no more", b"PK\x05\x06" + b"\x00" * 18):
        path.write_bytes(data)
        with pytest.raises(PosteriorFileError, match="is not a saved posterior"):
            load(path)


def test_foreign_archives_are_refused(tmp_path):
    np.savez(tmp_path / "foreign.npz", x=np.zeros(3))
    with pytest.raises(PosteriorFileError, match="archive of something else"):
        load(tmp_path / "foreign.npz")
    for text in ('{"format": 3}', "[]", '"text"', "null"):
        with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
            archive.writestr("header.json", text)
        with pytest.raises(PosteriorFileError, match="of another program"):
            load(tmp_path / "foreign.zip")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("header.json", "no json")
    with pytest.raises(PosteriorFileError, match="damaged"):
        load(tmp_path / "foreign.zip")


def test_a_folder_and_nothing(tmp_path):
    with pytest.raises(PosteriorFileError, match="is a folder, not a saved posterior"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.qbs"):
        load(tmp_path / "nothing.qbs")


# Writing that fails


class _FullDisk(zipfile.ZipFile):
    """An archive on a disk that fills up after some members."""

    room = 0

    def writestr(self, name, data, *rest):
        if len(self.namelist()) >= self.room:
            raise OSError(28, "No space left on device")
        super().writestr(name, data, *rest)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_disk_harms_nothing(saved, monkeypatch, room):
    _, path = saved
    before = path.read_bytes()
    monkeypatch.setattr(_FullDisk, "room", room)
    monkeypatch.setattr(zipfile, "ZipFile", _FullDisk)
    with pytest.raises(OSError, match="No space left"):
        _full().save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_kill_between_writing_and_renaming_harms_nothing(saved, monkeypatch):
    _, path = saved
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _full().save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_an_existing_file_is_replaced(saved):
    _, path = saved
    _full().save(path)
    _require_equal(load(path), _full())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cannot save .*run\.qbs: there is no folder .*nowhere"):
        _full().save(tmp_path / "nowhere" / "run.qbs")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="there is no folder"):
        _full().save(tmp_path / "file" / "run.qbs")


def test_a_folder_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError):
            _full().save(tmp_path / "run.qbs")
    finally:
        tmp_path.chmod(0o700)


def test_a_path_that_is_a_folder(tmp_path):
    (tmp_path / "run.qbs").mkdir()
    with pytest.raises(OSError, match=r"run\.qbs"):
        _full().save(tmp_path / "run.qbs")
    assert os.listdir(tmp_path) == ["run.qbs"]


@pytest.mark.parametrize("provenance", [{"f": len}, {"a": np.zeros(3)}, {"s": {1, 2}}])
def test_what_cannot_be_saved_is_named_and_harms_nothing(saved, provenance):
    _, path = saved
    before = path.read_bytes()
    kind = type(next(iter(provenance.values()))).__name__
    with pytest.raises(TypeError, match=f"cannot save a {kind} in the header"):
        qbs.Posterior({"x": np.zeros((1, 1))}, provenance=provenance).save(path)
    assert path.read_bytes() == before


def test_objects_are_not_pickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        qbs.Posterior({"x": np.array([[object()]])}).save(tmp_path / "run.qbs")
    assert os.listdir(tmp_path) == []


def test_names_with_no_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _full().save("run.qbs")
    _require_equal(qbs.load("run.qbs"), _full())
