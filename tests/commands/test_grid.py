"""jaxdiff grid: levels fitted to a run, which sampling then takes."""

import json

import numpy as np
import pytest
from tiny import TRAIN

import sample
import train
from jaxdiff.commands import grid


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained") / "run"
    train.main([*TRAIN, "--workdir", str(workdir)])
    return workdir


def test_fitted_grids_are_stored_with_the_run_and_sampled(trained, tmp_path, capsys):
    grid.main([str(trained), "--steps", "3", "5", "--fine", "12", "--num", "2"])
    assert len(capsys.readouterr().out.splitlines()) == 4
    record = json.loads((trained / "grids" / "5.json").read_text())
    ratios = record["grid"]["ratios"]
    assert len(ratios) == 5 and np.all(np.diff(ratios) < 0) and ratios[0] == pytest.approx(200)
    assert record["cost"] <= record["cost_of_even_logsnr"] + 1e-9
    out = tmp_path / "out"
    sample.main([str(trained), "--out", str(out), "--num", "8", "--steps", "5", "--grid", "optimised"])
    info = json.loads((out / "info.json").read_text())
    assert info["grid"]["ratios"] == ratios and info["nfe"] == 5


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--steps", "90"], ["90", "1 to 80", "--steps"]),
        (["--sigma-min", "300.0"], ["300", "--sigma-min"]),
        (["--num", "0"], ["num = 0", "--num"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line(capsys, trained, args, words):
    with pytest.raises(SystemExit):
        grid.main([str(trained), *args])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words)
