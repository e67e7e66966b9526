"""A folder is a new run, the same run, or refused in one line."""

import json

import pytest

from jaxdiff.training import workdir
from jaxdiff.training.workdir import check_config, prepare_workdir, read_config

CONFIG = {
    "type": "Config",
    "optim": {"type": "Optim", "learning_rate": 0.001, "rule": {"type": "AdamW", "b1": 0.9, "b2": 0.99}},
    "network": {"type": "UNet", "channels": [32, 64], "dtype": None},
    "ema": [{"type": "Decay", "decay": 0.999}, {"type": "Power", "sigma_rel": 0.05}],
    "steps": 100,
    "log_every": 10,
}


def changed(**flat):
    """The config with values at dotted names, written with __ for the dots."""
    config = json.loads(json.dumps(CONFIG))
    for name, value in flat.items():
        *path, last = name.split("__")
        node = config
        for key in path:
            node = node[int(key) if isinstance(node, list) else key]
        node[last] = value
    return config


def message(call, *args, error=ValueError, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_new_folder_keeps_its_config_and_takes_the_same_run_again(tmp_path):
    root = tmp_path / "runs" / "a"
    prepare_workdir(root, CONFIG)
    assert read_config(root) == CONFIG
    prepare_workdir(root, {**CONFIG, "network": {**CONFIG["network"], "channels": (32, 64)}})  # tuples are lists
    assert sorted(p.name for p in root.iterdir()) == ["config.json"]


def test_empty_folder_of_a_fresh_disk_is_new(tmp_path):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".hidden").touch()
    prepare_workdir(tmp_path, CONFIG)
    assert read_config(tmp_path) == CONFIG


def test_other_config_is_refused_with_what_differs(tmp_path):
    prepare_workdir(tmp_path, CONFIG)
    assert message(prepare_workdir, tmp_path, changed(optim__learning_rate=0.002)) == (
        f"workdir {tmp_path} holds a run with optim.learning_rate = 0.001, this one has 0.002 "
        "(--optim.learning-rate): use the same, or another --workdir"
    )
    assert read_config(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("current", "parts"),
    [
        (changed(ema__1__sigma_rel=0.1), ["ema.1.sigma_rel = 0.05, this one has 0.1 (--ema.1.sigma-rel)"]),
        (
            changed(network__channels=[32, 96]),
            ["network.channels = [32, 64], this one has [32, 96] (--network.channels)"],
        ),
        (changed(optim__rule={"type": "Lion", "b1": 0.8}), ["with optim.rule = AdamW, this one has Lion: use"]),
        (changed(ema=CONFIG["ema"][:1]), ["ema = "]),
        (changed(new_field=3), ["new_field = null, this one has 3 (--new-field)"]),
        (changed(network__dtype="bfloat16"), ['network.dtype = null, this one has "bfloat16"']),
        (changed(steps=200, log_every=1), ["log_every = 10, this one has 1 (--log-every); steps = 100, this one"]),
    ],
)
def test_each_kind_of_difference_is_named(current, parts):
    text = message(check_config, "here", CONFIG, current)
    assert all(part in text for part in parts)


def test_many_differences_are_counted():
    old = {f"x{i}": 0 for i in range(9)}
    text = message(check_config, "here", old, dict.fromkeys(old, 1))
    assert "x3 = 0" in text and "x4 = 0" not in text and "and 5 more" in text


def test_equal_configs_pass():
    check_config("here", CONFIG, changed())
    check_config("here", {"a": 1.0, "b": float("nan")}, {"a": 1, "b": float("nan"), "c": None})


def test_what_may_differ_is_said_by_name_or_by_branch(tmp_path):
    prepare_workdir(tmp_path, CONFIG)
    current = changed(steps=200, optim__rule__b1=0.5)
    prepare_workdir(tmp_path, current, ignore={"steps", "optim.rule"})
    assert read_config(tmp_path) == current  # the config of the last start
    assert "steps = 200" in message(prepare_workdir, tmp_path, CONFIG, ignore={"step", "optim"})


def test_flags_may_have_other_names():
    text = message(check_config, "here", {"objective": {"x": 1}}, {"objective": {"x": 2}}, flag=lambda n: f"[{n[-1]}]")
    assert "([x])" in text


@pytest.mark.parametrize(
    "content", ['{"architectures": ["GPT"]}', '{"jaxdiff": "0.1.0"}', '{"jaxdiff": "0.', "[1]", "\xff"]
)
def test_config_of_something_else_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    assert "config.json was not written by jaxdiff" in message(prepare_workdir, tmp_path, CONFIG)
    assert (tmp_path / "config.json").read_bytes() == content.encode("latin-1")
    assert "was not written by jaxdiff" in message(read_config, tmp_path)


def test_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    text = message(prepare_workdir, tmp_path, CONFIG)
    assert text.startswith(f"workdir {tmp_path} holds thesis.tex, but no run of jaxdiff") and "--workdir" in text
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_unwritable_folder_is_refused(tmp_path, below):
    file = tmp_path / "file"
    file.touch()
    text = message(prepare_workdir, file / below, CONFIG)
    assert text == f"workdir {file / below} cannot be written: Not a directory (--workdir)"


def test_full_disk_is_refused(tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(28, "No space left on device", str(file))

    monkeypatch.setattr(workdir, "write_json", full)
    text = message(prepare_workdir, tmp_path / "run", CONFIG)
    assert text == f"workdir {tmp_path / 'run'} cannot be written: No space left on device (--workdir)"


def test_folder_without_a_run_says_so(tmp_path):
    assert "holds no run" in message(read_config, tmp_path, error=FileNotFoundError)
    assert "holds no run" in message(read_config, tmp_path / "none", error=FileNotFoundError)


def test_interrupted_write_leaves_the_old_config(tmp_path, monkeypatch):
    prepare_workdir(tmp_path, CONFIG)
    monkeypatch.setattr(type(workdir.epath.Path(tmp_path)), "replace", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        workdir.write_json(workdir.epath.Path(tmp_path) / "config.json", {})
    monkeypatch.undo()
    assert read_config(tmp_path) == CONFIG
