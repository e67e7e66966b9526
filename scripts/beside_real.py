"""Real and sampled pictures side by side, a row for each class: the figure of docs/results.md.

    python sample.py RUN --out OUT --num 60 --format npz
    python scripts/beside_real.py RUN OUT/samples.npz figure.png

The samples must be of the classes in turn, as sample.py makes them without --label.
"""

import sys
from pathlib import Path

import numpy as np

from jaxdiff.config import Config, from_json
from jaxdiff.data import open_source
from jaxdiff.training.contact_sheet import contact_sheet, save_png
from jaxdiff.training.restore import read_step_config, steps

EACH = 6
"""Real pictures in a row, and samples."""


def main(run: Path, samples: Path, figure: Path) -> None:
    config = from_json(read_step_config(run, steps(run)[-1])["config"])
    assert isinstance(config, Config)
    source = open_source(config.data)
    classes = len(source.label_names)
    made = np.load(samples)["images"]
    if len(made) < EACH * classes:
        raise SystemExit(f"error: {samples} holds {len(made)} images, {EACH * classes} are needed (--num)")
    labels = np.array([source[i].get("label", -1) for i in range(len(source))])
    rows = []
    for c in range(classes):
        members = np.flatnonzero(labels == c)
        chosen = members[np.linspace(0, len(members) - 1, EACH).round().astype(int)]
        gap = np.full_like(made[0], 255)
        rows += [*(source[int(i)]["image"] for i in chosen), gap, *made[c : EACH * classes : classes]]
    save_png(figure, contact_sheet(np.stack(rows), columns=2 * EACH + 1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
