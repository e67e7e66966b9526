"""jaxdiff convert against diffusers' own pipelines: small ones of random weights, saved, converted and sampled."""

import dataclasses
import json
import shutil
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")
pytest.importorskip("transformers", reason="needs the extra parity")

from small_pipelines import VAE, filled  # noqa: E402

from jaxdiff.commands import convert  # noqa: E402
from jaxdiff.models import read_model  # noqa: E402
from jaxdiff.pretrained import safetensors  # noqa: E402
from jaxdiff.sampling.sample import image_keys, initial  # noqa: E402
from jaxdiff.settings import Settings  # noqa: E402
from jaxdiff.trained import open_trained  # noqa: E402

INDICES = np.arange(8, dtype=np.int32)  # a multiple of the devices
STEPS = 5
UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
    "attention_head_dim": None,
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
}


def ours(folder, **settings):
    """(the images that sample.py makes, their noise as torch's)."""
    trained = open_trained(folder, Settings(batch_size=len(INDICES), steps=STEPS, seed=3, **settings))
    first = jax.tree.map(lambda leaf: leaf[0], trained.levels)
    data = trained.config.data
    x = initial(image_keys(3, jnp.asarray(INDICES)), (data.size, data.size, data.channels), first)
    return trained.images(INDICES), torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())


def with_noise(monkeypatch, module, x):
    """The pipeline of this module starts from x."""
    monkeypatch.setattr(module, "randn_tensor", lambda *args, **kwargs: x.clone())


def off(images, theirs):
    """The largest difference, in 255ths, of pictures that show something."""
    assert images.shape == theirs.shape and np.ptp(images.astype(int)) > 60
    return np.abs(images.astype(int) - np.round(255 * theirs)).max()


def assert_round_trip(first, folder, tmp_path, *parts):
    """Converted back and forth, every file is what it was: tensors bit by bit, and what the JSON files say."""
    convert.main([str(folder), str(tmp_path / "back"), "--to", "diffusers"])
    for part in parts:
        (one,), (other,) = ((list((root / part).glob("*.safetensors"))) for root in (first, tmp_path / "back"))
        want, got = safetensors.read(one), safetensors.read(other)
        assert want.keys() == got.keys()
        for name, array in want.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)
    for file in first.rglob("*config.json"):
        said = json.loads((tmp_path / "back" / file.relative_to(first)).read_text())
        assert said == json.loads(file.read_text())


def without_published(folder, tmp_path):
    """The model without the JSON files that it was made from."""
    shutil.copytree(folder, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "published")
    return tmp_path / "bare"


SCHEDULERS: dict[str, Any] = {
    "ddpm": {"beta_schedule": "linear", "clip_sample": True},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False},
    "zero-snr": {
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    },
    "unclean": {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "clip_sample": False,
    },
    "short": {"num_train_timesteps": 500, "prediction_type": "sample", "clip_sample": True},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pictures_of_a_ddpm(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    unet = filled(diffusers.UNet2DModel(**UNET))
    scheduler = diffusers.DDIMScheduler(**SCHEDULERS[name])
    pipeline = diffusers.DDIMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "theirs")
    convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    images, x = ours(tmp_path / "ours")
    with_noise(monkeypatch, diffusers.pipelines.ddim.pipeline_ddim, x)
    clips = SCHEDULERS[name]["clip_sample"]
    theirs = pipeline(batch_size=8, num_inference_steps=STEPS, use_clipped_model_output=clips, output_type="np").images
    error = off(images, theirs)
    assert error <= 1, error
    assert_round_trip(tmp_path / "theirs", tmp_path / "ours", tmp_path, "unet")
    # Without the published JSON files the written ones make the same pictures.
    bare = without_published(tmp_path / "ours", tmp_path)
    convert.main([str(bare), str(tmp_path / "written"), "--to", "diffusers"])
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "written")
    pipeline.set_progress_bar_config(disable=True)
    with_noise(monkeypatch, diffusers.pipelines.ddim.pipeline_ddim, x)
    again = pipeline(batch_size=8, num_inference_steps=STEPS, use_clipped_model_output=clips, output_type="np").images
    np.testing.assert_allclose(again, theirs, atol=1e-5)


def test_the_first_ddpms_lie_in_one_folder(tmp_path):
    pipeline = diffusers.DDPMPipeline(filled(diffusers.UNet2DModel(**UNET)), diffusers.DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "theirs")
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "theirs").rglob("*.*"):
        if file.is_file():
            shutil.copyfile(file, flat / file.name)
    for name in ("theirs", "flat"):
        convert.main([str(tmp_path / name), str(tmp_path / f"{name}-ours")])
    one, other = (read_model(tmp_path / f"{name}-ours") for name in ("theirs", "flat"))
    assert one.config == other.config and one.config.sampling.steps == 1000
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_pictures_of_a_dit(cfg_scale, tmp_path, monkeypatch):
    torch.manual_seed(0)
    names = {i: f"thing {i}" for i in range(1000)}
    vae, transformer = filled(diffusers.AutoencoderKL(**VAE)), filled(diffusers.DiTTransformer2DModel(**DIT))
    for block in transformer.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(transformer.transformer_blocks[0].norm1.emb.state_dict())
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    pipeline = diffusers.DiTPipeline(transformer, vae, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "theirs")
    index = tmp_path / "theirs" / "model_index.json"  # the published one has names, which are not saved again
    index.write_text(json.dumps(json.loads(index.read_text()) | {"id2label": names}))
    convert.main([str(tmp_path / "theirs"), str(tmp_path / "first")])
    (tmp_path / "first").rename(tmp_path / "ours")  # its codec goes with it
    images, x = ours(tmp_path / "ours", cfg_scale=cfg_scale, label="thing 7")
    with_noise(monkeypatch, diffusers.pipelines.dit.pipeline_dit, x)
    theirs = pipeline(
        class_labels=[7] * 8, guidance_scale=cfg_scale, num_inference_steps=STEPS, output_type="np"
    ).images
    error = off(images, theirs)
    assert error <= 1, error
    if cfg_scale > 1:
        model = read_model(tmp_path / "ours")
        assert model.config.sampling.cfg_scale == 4.0 and model.label_names[7] == "thing 7"
        assert_round_trip(tmp_path / "theirs", tmp_path / "ours", tmp_path, "transformer", "vae")
        bare = without_published(tmp_path / "ours", tmp_path)
        convert.main([str(bare), str(tmp_path / "written"), "--to", "diffusers"])
        again = diffusers.DiTPipeline.from_pretrained(tmp_path / "written")
        assert again.labels["thing 7"] == 7 and again.vae.config.scaling_factor == 0.4


def test_pictures_of_an_ldm(tmp_path, monkeypatch):
    torch.manual_seed(0)
    vqvae = filled(diffusers.VQModel(**VAE | {"latent_channels": 3, "num_vq_embeddings": 8}))
    unet = filled(diffusers.UNet2DModel(**UNET))
    pipeline = diffusers.LDMPipeline(vqvae, unet, diffusers.DDIMScheduler(clip_sample=False))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "theirs")
    convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    images, x = ours(tmp_path / "ours")
    with_noise(monkeypatch, sys.modules[type(pipeline).__module__], x)
    theirs = pipeline(batch_size=8, num_inference_steps=STEPS, output_type="np").images
    error = off(images, theirs)
    assert error <= 1, error
    assert_round_trip(tmp_path / "theirs", tmp_path / "ours", tmp_path, "unet", "vqvae")
    bare = without_published(tmp_path / "ours", tmp_path)
    convert.main([str(bare), str(tmp_path / "written"), "--to", "diffusers"])
    again = diffusers.LDMPipeline.from_pretrained(tmp_path / "written")
    assert again.vqvae.config.scaling_factor == 0.4 and again.vqvae.config.num_vq_embeddings == 8


def refusal(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        convert.main([str(arg) for arg in args])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_what_is_not_supported_is_named(tmp_path, capsys):
    theirs, new = tmp_path / "theirs", tmp_path / "new"
    diffusers.DDPMPipeline(diffusers.UNet2DModel(**UNET), diffusers.DDPMScheduler()).save_pretrained(theirs)

    def changed(file, **fields):
        said = (theirs / file).read_text()
        (theirs / file).write_text(json.dumps(json.loads(said) | fields))
        line = refusal(capsys, theirs, new)
        (theirs / file).write_text(said)
        return line

    assert "LMSPipeline" in changed("model_index.json", _class_name="LMSPipeline")
    assert "LMSDiscreteScheduler" in changed("scheduler/scheduler_config.json", _class_name="LMSDiscreteScheduler")
    assert "clip_sample_range" in changed("scheduler/scheduler_config.json", clip_sample_range=2.0)
    assert "thresholding" in changed("scheduler/scheduler_config.json", thresholding=True)
    assert "trained_betas" in changed("scheduler/scheduler_config.json", trained_betas=[0.1])
    assert "VQModel" in changed("unet/config.json", _class_name="VQModel")
    assert "model_index.json" in refusal(capsys, theirs / "unet", new)
    assert not new.exists()
    convert.main([str(theirs), str(new)])
    model = read_model(new)
    shutil.rmtree(new / "published")
    wide = dataclasses.replace(model.config, network=model.config.network.clone(skip_scale=0.5))
    record = json.loads((new / "config.json").read_text())
    from jaxdiff.config import to_json

    record["config"] = to_json(wide)
    (new / "config.json").write_text(json.dumps(record))
    assert "skip_scale" in refusal(capsys, new, tmp_path / "out", "--to", "diffusers")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "theirs"]
