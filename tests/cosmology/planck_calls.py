"""A short run of the real likelihood that leaves a line for each call, for a test that kills it.

python planck_calls.py DATA LINES CHECKPOINT
"""

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

import qbs
from qbs.inference.nested import Dynesty
from qbs.models.cosmology import planck_lite_target

MAX_CALLS = 40


@dataclass(frozen=True)
class Counted:
    """A likelihood that writes what it gave into a file of its process."""

    likelihood: Any
    folder: str

    def __call__(self, parameters):
        value = self.likelihood(parameters)
        with (Path(self.folder) / f"{os.getpid()}.txt").open("a") as file:
            file.write(f"{value!r} { ({name: float(number) for name, number in parameters.items()})!r}\n")
        return value


def fit(data, lines, checkpoint):
    target = planck_lite_target(data_path=data)
    target = dataclasses.replace(target, log_likelihood=Counted(target.log_likelihood, str(lines)))
    method = Dynesty(num_live=16, dlogz=0.5, batch_size=4, max_calls=MAX_CALLS)
    return qbs.fit(
        target, method=method, key=jax.random.key(5), executor=2, checkpoint=checkpoint, progress=False
    )


if __name__ == "__main__":
    import planck_calls  # so that workers import this module, and do not run the script

    print(planck_calls.fit(*sys.argv[1:]))
