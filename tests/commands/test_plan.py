"""jaxdiff plan: the real step, compiled for chips that are not there."""

import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff import build
from jaxdiff.commands import plan, plan_remedies, plan_step, plan_table
from jaxdiff.networks.dit import DiT
from jaxdiff.planning import memory
from jaxdiff.planning.chips import CHIPS, Slice, parse_slice
from jaxdiff.presets import preset
from jaxdiff.training.sharding import MeshShape, make_mesh

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (pip install 'jaxdiff[tpu]')"
)
NETWORK = DiT(patch=2, width=64, depth=2, heads=2, num_classes=10, learned_variance=True, remat="none")
FLAGS = [
    *("--data.size", "8", "--network.width", "64", "--network.depth", "2", "--network.heads", "2"),
    *("--network.num-classes", "10", "--sampling.steps", "3", "--batch-size", "8"),
]


@pytest.fixture
def config():
    """DiT's run with a tiny network."""
    run = preset("imagenet256_dit_s2")
    return dataclasses.replace(run, network=NETWORK, data=dataclasses.replace(run.data, size=8), batch_size=8)


def test_bytes_of_a_state_by_hand(config):
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    state = build.state_fn(config, mesh)[1]
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert memory.bytes_per_device(state.params) == memory.bytes_per_device(state.ema) == 4 * numbers
    assert memory.bytes_per_device(state.opt_state) == 8 * numbers + 8  # two moments, two counts
    batch = plan_step.abstract_batch(config, mesh)
    assert memory.bytes_per_device(batch) == 8 * (8 * 8 * 4 * 4 + 4)


def test_bytes_of_what_is_spread():
    mesh = jax.sharding.AbstractMesh((2, 4), ("a", "b"))
    spread = jax.ShapeDtypeStruct((8, 6), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("b", "a")))
    whole = jax.ShapeDtypeStruct((3,), jnp.float32)
    assert memory.bytes_per_device([spread, whole]) == 2 * 3 * 2 + 12


def test_remedies_are_tried_in_order(config):
    flags = [remedy.flags for remedy in plan_remedies.remedies(config, 4)]
    assert flags[:2] == ["--network.remat dots", "--network.remat full"]
    alone = ["--mesh.fsdp 2", "--mesh.fsdp 4", "--optim.accumulate 2"]
    assert flags[2:5] == alone
    assert flags[5:8] == [f"--network.remat full {flag}" for flag in alone]
    last = list(plan_remedies.remedies(config, 4))[-1].config
    assert (last.network.remat, last.mesh.fsdp, last.optim.accumulate) == ("full", 4, 2)
    assert list(plan_remedies.remat_policies(preset("cifar10_ddpm"))) == ["dots", "full"]


@needs_compiler
def test_a_real_compilation(tmp_path, capsys):
    out = tmp_path / "plan.json"
    plan.main(["imagenet256_dit_s2", "--topology", "v5e:2x2", *FLAGS, "--json", str(out)])
    text = capsys.readouterr().out
    assert "fits: " in text and "days, assuming 0.4 of the roofline" in text
    record = json.loads(out.read_text())
    step, sampling = record["training"], record["sampling"]
    assert record["chips"] == 4 and record["remedy"] == "" and step["fits"] and sampling["fits"]
    # Every parameter's gradient is summed over the chips once, at most in float32 and at least in bfloat16.
    parameters = step["hbm_bytes_per_chip"]["parameters"]
    assert 0.5 * parameters <= step["collectives_per_chip"]["all-reduce"]["payload"] <= 1.1 * parameters
    assert step["hbm_bytes_per_chip"]["optimiser"] == 2 * parameters + 8
    # Guidance is off: a step asks the network once for each image, and training costs three times that.
    asked = sampling["flops"]["total"] / record["sampling_batch"] / record["sampling_steps"]
    assert step["flops"]["total"] / record["batch_size"] == pytest.approx(3 * asked, rel=0.02)
    assert record["images"] == 400_000 * 256 and record["days"] > 0


@needs_compiler
def test_what_does_not_fit_is_said_and_mended(config):
    """The compiler's own error; the search for a remedy stops at the first that fits."""
    devices = plan_step.open_slice(parse_slice("v5e:2x2"))
    huge = dataclasses.replace(config, batch_size=2**24)
    program = plan_step.plan_training(huge, Slice(CHIPS["v5e"], (2, 2)), devices)
    assert not program.fits and "memory" in program.trouble and "\n" not in program.trouble
    assert program.roofline is None and program.flops.total > 0
    asked = []

    def fake(changed):
        asked.append(changed)
        return program._replace(fits=changed.mesh.fsdp == 2)

    remedy, found = plan_remedies.first_that_fits(plan_remedies.remedies(config, 4), fake)
    assert remedy.flags == "--mesh.fsdp 2" and found.fits and len(asked) == 3


def test_a_table_keeps_its_rows_and_goes_on(tmp_path, monkeypatch, capsys):
    made = []

    def row(name, slice_, efficiency, samples):
        made.append((name, slice_.name))
        assert samples  # both are slices for which the sampler is compiled
        return {"preset": name, "slice": slice_.name, "error": "not | made"}

    monkeypatch.setattr(plan_table, "row", row)
    args = ["--table", "smileys", "emoji", "--topologies", "v5e-8", "v5p-128", "--rows", str(tmp_path)]
    plan.main(args)
    plan.main(args)
    assert sorted(made) == sorted(set(made)) and len(made) == 4
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 6 and all(line.replace("\\|", "").count("|") == len(plan_table.HEAD) + 1 for line in lines)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["smileys", "--topology", "v5x-8"], ["v5x-8", "v5e", "--topology"]),
        (["smileys", "--topology", "v5e-8", "--efficiency", "1.5"], ["1.5", "at most 1", "--efficiency"]),
        (["smileys", "--topology", "v5e-8", "--sampling-batch", "-1"], ["-1", "--sampling-batch"]),
        (["smilies", "--topology", "v5e-8"], ["smilies", "cifar10_ddpm"]),
        (["--table", "smilies", "--rows", "nowhere"], ["smilies", "cifar10_ddpm"]),
    ],
    ids=lambda v: " ".join(v),
)
def test_mistakes_are_one_line(capsys, args, words):
    with pytest.raises(SystemExit):
        plan.main(args)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words)


def test_a_batch_that_the_slice_cannot_share_is_refused(config):
    with pytest.raises(ValueError, match=r"8 is not a multiple of 16 .*--batch-size"):
        plan_step.plan_training(config, parse_slice("v5e-16"), list(range(16)))


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu.*jaxdiff\[tpu\]"):
        plan_step.open_slice(parse_slice("v5e-8"))
