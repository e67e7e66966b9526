"""The noise levels that `jaxdiff grid` has fitted to a run, where they lie in its folder."""

import json

from etils import epath

from jaxdiff.config import from_json
from jaxdiff.core.grids import Table


def fitted_grid(workdir: epath.PathLike, steps: int) -> epath.Path:
    """Where `jaxdiff grid` writes the levels for this number of steps."""
    return epath.Path(workdir) / "grids" / f"{steps}.json"


def read_fitted_grid(workdir: epath.PathLike, steps: int) -> Table:
    """The levels that were fitted to the run. Raises: ValueError if there are none for this number of steps."""
    path = fitted_grid(workdir, steps)
    if not path.exists():
        raise ValueError(f"{workdir} has no grid for {steps} steps: jaxdiff grid {workdir} --steps {steps} (--grid)")
    table = from_json(json.loads(path.read_text())["grid"])
    assert isinstance(table, Table)
    return table
