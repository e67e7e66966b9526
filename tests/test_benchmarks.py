"""The benchmarks' own parts: what they count, how they take turns, what they write. Nothing is timed here."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import gpu, report, run, worker
from benchmarks.floor import alone, operations
from benchmarks.flops import count_flops
from benchmarks.plain_dit import PlainDiT, plain_state, plain_step
from benchmarks.sections import check_same_work
from jaxdiff.networks.apply import init_params
from jaxdiff.networks.dit import DiT

SHAPE = (8, 8, 4)


def size(tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def side(median: float, flops: float = 1e9, parameters: int = 100, **more: float) -> dict:
    return {"median": median, "first": median + 2, "flops": flops, "parameters": parameters, "repeated": 0, **more}


def record(sides: dict, quick: bool = False) -> dict:
    machine = {
        "cpu": "a chip",
        "cores": 2,
        "features": [],
        "memory_gib": 8,
        "system": "Linux",
        "versions": {"jax": "1"},
    }
    spec = {"network": "unet", "task": "train", "batch": 4, "calls": 5}
    peaks = {"limit": {"matmul": 1e10, "conv": 2e10}, "sides": {}}
    return {
        "machine": machine,
        "quick": quick,
        "sections": {"peaks": peaks, "unet_train": {"spec": spec, "sides": sides}},
    }


@pytest.mark.parametrize("depth, width, heads", [(2, 32, 2), (3, 48, 4)])
def test_plain_dit_has_the_parameters_and_the_work_of_ours(depth, width, heads):
    plain = PlainDiT(depth, width, heads, dtype=jnp.dtype("float32"))
    ours = DiT(depth=depth, width=width, heads=heads)
    x, t = jnp.zeros((2, *SHAPE)), jnp.zeros(2)
    mine = jax.eval_shape(lambda: plain.init(jax.random.key(0), x, t)["params"])
    theirs = jax.eval_shape(lambda: init_params(ours, jax.random.key(0), SHAPE, {}))
    assert size(mine) == size(theirs)
    work = count_flops(lambda p: plain.apply({"params": p}, x, t), mine)
    assert work == count_flops(lambda p: ours.apply({"params": p}, x, t, {}), theirs)


def test_plain_step_learns():
    network, rule = PlainDiT(1, 16, 2, dtype=jnp.dtype("float32")), optax.adamw(1e-2)
    image = jnp.full((4, *SHAPE), 255, jnp.uint8)
    step, state = jax.jit(plain_step(network, rule)), jax.jit(lambda: plain_state(network, rule, SHAPE))()
    losses = []
    for _ in range(30):
        state, value = step(state, image)
        losses.append(float(value))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_flops_of_closed_forms():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert count_flops(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert count_flops(lambda a: jax.lax.scan(lambda x, _: (x @ x.T @ x, None), a, None, length=4)[0], a) == 4 * 2 * 90

    def conv(x, w, stride):
        return jax.lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    x, w = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    for stride, outputs in ((1, 64), (2, 16)):
        forward = 2 * 2 * outputs * 9 * 3 * 5
        assert count_flops(lambda x, w, s=stride: conv(x, w, s), x, w) == forward
        # The gradients of the input and of the kernel each join the same pairs of numbers again.
        gradient = jax.grad(lambda x, w, s=stride: jnp.sum(jnp.square(conv(x, w, s))), (0, 1))
        assert count_flops(gradient, x, w) == 3 * forward


def test_a_floor_has_every_product_as_often_as_it_runs():
    a, b = jnp.zeros((4, 4)), jnp.zeros((4, 4))

    def program(a, b):
        x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(jnp.matmul)(x, b), None), a, None, length=3)
        image = x.reshape(1, 4, 4, 1)
        kernel = jnp.ones((3, 3, 1, 2))
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = list(operations(jax.make_jaxpr(program)(a, b).jaxpr))
    assert [(eqn.primitive.name, times) for eqn, times in found] == [
        ("dot_general", 3.0),
        ("conv_general_dilated", 1.0),
    ]
    for eqn, _ in found:
        out = alone(eqn)()
        assert out.shape == (jax.device_count(), *eqn.outvars[0].aval.shape) and bool(jnp.any(out != 0))


def test_sides_take_turns(monkeypatch):
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: None)
    seen = []

    def measure(name):
        return lambda seconds: seen.append((name, seconds)) or [float(len(seen))]

    times = worker.alternate({"a": measure("a"), "b": measure("b")}, seconds=6.0, turns=3)
    assert seen == [("a", 2.0), ("b", 2.0)] * 3
    assert times == {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    assert worker.summary([3.0, 1.0, 2.0, 10.0, 2.5])["median"] == 2.5


def test_repeat_keeps_to_its_budget():
    runs = []
    assert len(worker.repeat(lambda: runs.append(1), seconds=0.0, least=4)) == len(runs) == 4


def test_other_work_is_refused():
    ours = side(1.0)
    check_same_work({"jaxdiff": ours, "PyTorch eager": side(2.0), "flaxdiff": side(1.0, flops=5e9)})
    check_same_work({"jaxdiff": ours, "PyTorch eager": side(2.0, parameters=130) | {"repeated": 30}})
    for other in (side(1.0, flops=1.02e9), side(1.0, parameters=98)):
        with pytest.raises(ValueError, match="times jaxdiff's"):
            check_same_work({"jaxdiff": ours, "PyTorch eager": other})


def test_the_table_tells_ratios_and_fractions():
    sides = {
        "jaxdiff": side(0.2),
        "PyTorch eager": side(0.3),
        "peer": side(0.4, flops=2e9),
        "gone": {"error": "no | such"},
    }
    lines = report.table(record(sides)).splitlines()
    rows = {
        cells[2].strip(): [cell.strip() for cell in cells[3:-1]] for cells in (line.split("|") for line in lines[4:])
    }
    assert {line.count("|") for line in lines[2:]} == {len(report.COLUMNS) + 1}
    assert rows["jaxdiff"] == ["50.0 ms per image (0.2 GFLOP)", "1", "1", "25 %", "2.0 s"]
    assert rows["PyTorch eager"][1:4] == ["1.50", "1.50", "17 %"]
    assert rows["peer"][1:3] == ["2.00", "1.00"]
    assert rows["gone"][0].startswith("failed")


def test_the_table_of_a_gpu_tells_ratios_and_fractions():
    jobs = gpu.jobs("cuda", quick=False, only="")
    assert len(jobs) == 3 * len(gpu.COMPARISONS) + 2
    (made,) = [job.message["make"] for job in jobs if (job.section, job.side) == ("dit_sample bfloat16", "jaxdiff")]
    sides = {"jaxdiff": side(0.1, flops=1e13), "PyTorch eager": side(0.2, flops=1e13), "gone": {"error": "no | such"}}
    peaks = {"JAX": {"best": {"bfloat16": {"matmul": 2e14, "conv": 1e14}}}, "PyTorch": {"error": "gone"}}
    here = {"driver": "", "device": "a chip", "versions": {"jax": "1"}}
    sections = {"dit_sample bfloat16": {"spec": made, "sides": sides}, "peaks": {"spec": None, "sides": peaks}}
    lines = report.gpu_table({"quick": False, "machine": here, "sections": sections}).splitlines()
    assert {line.count("|") for line in lines[2:]} == {len(report.GPU_COLUMNS) + 1}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert rows[0] == ["matrix product, peak, bfloat16", "JAX", "200.0 TFLOP/s", "", "100 %"]
    assert rows[2][2:] == ["20480 images and calls/s (12.50 ms a call)", "1.00", "50 %"]
    assert rows[3][3:] == ["2.00", "25 %"] and rows[4][2] == "failed: no / such"


def test_a_side_that_fails_on_a_gpu_is_an_error_and_the_others_go_on(monkeypatch, tmp_path):
    class Side:
        def __init__(self, module, env):
            self.name, self.process = module, self
            self.stdin, self.close, self.kill = self, lambda: None, lambda: None

        def ask(self, **message):
            if self.name == "torch_side":
                raise worker.Failed("no such module")
            return {"times": [0.5]} if "measure" in message else {"flops": 1e9, "parameters": 1}

    monkeypatch.setattr(gpu, "Worker", Side)
    monkeypatch.setattr(gpu.time, "sleep", lambda seconds: None)
    out = tmp_path / "gpu.json"
    command = ["gpu", "--out", str(out), "--quick", "--only", "dit_train", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", command)
    gpu.main()
    sides = json.loads(out.read_text())["sections"]["dit_train bfloat16"]["sides"]
    assert sides["jaxdiff"]["median"] == 0.5 and sides["jaxdiff"]["count"] == 2
    assert sides["PyTorch eager"] == sides["PyTorch compiled"] == {"error": "no such module"}


def test_growth_is_an_exponent():
    assert report.exponent([2, 4, 8, 16], [5 * n**1.7 for n in (2, 4, 8, 16)]) == pytest.approx(1.7)


def test_the_page_around_the_table_is_left_alone(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"# By hand\n\n{run.BEGIN}\nold\n{run.END}\n\nafter\n")
    run.report(record({"jaxdiff": side(0.2)}, quick=True), tmp_path)
    text = page.read_text()
    assert text.startswith(f"# By hand\n\n{run.BEGIN}\n**A quick look") and text.endswith(f"{run.END}\n\nafter\n")
    assert "old" not in text and (tmp_path / "performance.png").stat().st_size < 500_000
    run.report(record({"jaxdiff": side(0.2)}, quick=True), tmp_path)
    assert page.read_text() == text
