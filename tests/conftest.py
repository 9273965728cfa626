"""What every test shares: the seed, the large data tables, and a guard against double imports."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # models and truths that tests and benchmarks share
SEED = 20240229


def pytest_configure(config: pytest.Config) -> None:
    # Processes that share JAX's compilation cache may read an entry that another is still writing. JAX then
    # warns and compiles; warnings are errors here.
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache entry:UserWarning"
    )


@pytest.fixture
def key() -> jax.Array:
    """A typed key, the same for every test."""
    return jax.random.key(SEED)


@pytest.fixture(scope="session")
def data_path() -> Path:
    """The survey tables too large to ship: $QBS_DATA_PATH, or shared/data/cosmology beside the checkout."""
    named = os.environ.get("QBS_DATA_PATH")
    folder = Path(named) if named else ROOT.parent / "shared" / "data" / "cosmology"
    if not folder.is_dir():
        if named:
            pytest.fail(f"QBS_DATA_PATH is {named}, which is not a folder")
        pytest.skip("large tables not here: set QBS_DATA_PATH")
    return folder


@pytest.fixture
def compile_events() -> Callable[[], AbstractContextManager[list[str]]]:
    """A context manager that lists what JAX compiles in its body."""

    @contextmanager
    def listen() -> Iterator[list[str]]:
        events: list[str] = []
        is_open = True

        def hear(event: str, _duration: float, **_: object) -> None:
            if is_open and event == "/jax/core/compile/backend_compile_duration":
                events.append(event)

        jax.monitoring.register_event_duration_secs_listener(hear)
        yield events
        is_open = False  # JAX has no public way to stop listening

    return listen


@pytest.fixture(scope="session", autouse=True)
def _one_copy_of_each_module() -> Iterator[None]:
    """Fail the session when something imported `inference` or `models` by their folder names.

    Such an import makes a second copy of each class, and `isinstance` is then false for no visible reason.
    """
    yield
    twice = sorted(name for name in sys.modules if name.split(".")[0] in ("inference", "models"))
    assert not twice, f"imported past qbs: {', '.join(twice)}; write qbs.inference and qbs.models"
