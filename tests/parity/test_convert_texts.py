"""jaxdiff convert of networks that are told of texts: their tensors there and back, and the schedulers' levels."""

import json
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")

from small_unets import SD1  # noqa: E402

from jaxdiff.commands import convert  # noqa: E402
from jaxdiff.models import read_model  # noqa: E402
from jaxdiff.pretrained import safetensors  # noqa: E402
from jaxdiff.schedulers import open_scheduler, scheduler_json  # noqa: E402

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SCHEDULERS: dict[str, Any] = {
    "sd-pndm": ("PNDMScheduler", SD | {"skip_prk_steps": True, "steps_offset": 1}),
    "sd2-ddim": ("DDIMScheduler", SD | {"steps_offset": 1, "clip_sample": False, "prediction_type": "v_prediction"}),
    "sdxl-euler": ("EulerDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    "euler": ("EulerDiscreteScheduler", SD),
    "pixart-dpm": ("DPMSolverMultistepScheduler", {}),
    "dpm-leading": ("DPMSolverMultistepScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    "cosine": ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}),
    "sd3": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_are_the_schedulers_own(name):
    kind, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(10)
    said = json.loads(scheduler.to_json_string())
    schedule = open_scheduler(said)
    levels = schedule.grid(schedule.path, 10)
    if hasattr(scheduler, "sigmas"):
        want = scheduler.sigmas.numpy()
        time = scheduler.timesteps.numpy()
    else:
        # PNDM takes the second of its times twice.
        time = np.unique(scheduler.timesteps.numpy())[::-1]
        bars = scheduler.alphas_cumprod.double().numpy()[time]
        want = np.append(np.sqrt(1 / bars - 1), np.sqrt(1 / float(scheduler.final_alpha_cumprod) - 1))
    flow = "FlowMatch" in kind
    got = np.asarray(levels.sigma / (1 if flow else levels.alpha))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6)
    fed = np.asarray(schedule.prediction.c_noise(type(levels)(levels.alpha[:-1], levels.sigma[:-1])))
    np.testing.assert_allclose(fed, time, atol=0.02)
    if kind != "EulerDiscreteScheduler":
        assert open_scheduler(scheduler_json(schedule)) == schedule


def test_flux_shifts_by_the_number_of_tokens():
    said = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=1.15)
    schedule = open_scheduler(said, tokens=4096)
    got = np.asarray(schedule.grid(schedule.path, 8).sigma)
    np.testing.assert_allclose(got, scheduler.sigmas.numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="use_dynamic_shifting"):
        open_scheduler(said)


def pipelines():
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 2}
    yield "StableDiffusionPipeline", "unet", diffusers.UNet2DConditionModel.from_config(SD1), diffusers.PNDMScheduler()
    sd3 = diffusers.SD3Transformer2DModel(
        **heads, sample_size=8, in_channels=4, joint_attention_dim=20, caption_projection_dim=32,
        pooled_projection_dim=12, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    yield "StableDiffusion3Pipeline", "transformer", sd3, flow
    flux = diffusers.FluxTransformer2DModel(
        **heads, in_channels=16, num_single_layers=1, joint_attention_dim=20, pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    yield "FluxPipeline", "transformer", flux, flow
    pixart = diffusers.PixArtTransformer2DModel(
        **heads, sample_size=8, in_channels=4, out_channels=8, caption_channels=20, cross_attention_dim=32,
        use_additional_conditions=False,
    )  # fmt: skip
    yield "PixArtAlphaPipeline", "transformer", pixart, diffusers.DPMSolverMultistepScheduler()


@pytest.mark.parametrize("number", range(4))
def test_networks_codecs_and_schedulers_there_and_back(number, tmp_path):
    torch.set_num_threads(1)
    kind, part, network, scheduler = list(pipelines())[number]
    first, back = tmp_path / "theirs", tmp_path / "back"
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4, norm_num_groups=8, scaling_factor=0.5)
    network.save_pretrained(first / part)
    vae.save_pretrained(first / "vae")
    scheduler.save_pretrained(first / "scheduler")
    (first / "tokenizer").mkdir()
    (first / "tokenizer" / "vocab.json").write_text("{}")
    index = {"_class_name": kind, part: ["diffusers", type(network).__name__], "vae": ["diffusers", "AutoencoderKL"]}
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    (first / "model_index.json").write_text(json.dumps(index))
    convert.main([str(first), str(tmp_path / "ours")])
    config = read_model(tmp_path / "ours").config
    assert config.latents.factor == 1 and config.codec == f"kl={tmp_path / 'ours' / 'codec'}"
    assert (tmp_path / "ours" / "text" / "tokenizer" / "vocab.json").read_text() == "{}"
    convert.main([str(tmp_path / "ours"), str(back), "--to", "diffusers"])
    for file in sorted(p for p in first.rglob("*") if p.is_file()):
        other = back / file.relative_to(first)
        if file.suffix == ".json":
            assert json.loads(other.read_text()) == json.loads(file.read_text())
        else:
            want, got = safetensors.read(file), safetensors.read(other)
            assert want.keys() == got.keys()
            for name, array in want.items():
                np.testing.assert_array_equal(got[name], array, err_msg=name)
