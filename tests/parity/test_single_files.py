"""jaxdiff convert of single files, against diffusers' own conversion of the same tensors."""

import dataclasses
import json
import sys
import types

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

import single_files as made  # noqa: E402
from diffusers.loaders.single_file_utils import (  # noqa: E402
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from safetensors.torch import load_file, save_file  # noqa: E402
from small_tokenizers import clip_words  # noqa: E402

from jaxdiff.commands import convert  # noqa: E402
from jaxdiff.core.predictions import Eps, V  # noqa: E402
from jaxdiff.models import read_model  # noqa: E402
from jaxdiff.pretrained.unet import dump, dump_original, load, unet_config  # noqa: E402
from jaxdiff.settings import Settings  # noqa: E402
from jaxdiff.trained import open_trained  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"
UNET = "model.diffusion_model."
SCHEDULE = {"alphas_cumprod": torch.ones(4), "sqrt_recipm1_alphas_cumprod": torch.ones(4), "logvar": torch.ones(4)}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def tokenizer(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    words, merges = clip_words()
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))
    return folder


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(np.asarray(got[name]), value.numpy(), err_msg=name)


def parts_of(name):
    """(U-Net, autoencoder, encoders by folder, the single file's tensors) of a small pipeline."""
    config = made.UNETS[name]
    unet, vae = made.filled(diffusers.UNet2DConditionModel.from_config(config)), made.vae()
    arrays = {key: value.numpy() for key, value in unet.state_dict().items()}
    network = unet_config(config)
    single = {
        key: torch.from_numpy(value.copy()) for key, value in dump_original(load(arrays, network), network).items()
    }
    single |= made.below("first_stage_model.", made.original_vae(vae.state_dict())) | SCHEDULE
    if name == "sd1":
        texts = {"text_encoder": made.clip()}
        own = made.state_of(texts["text_encoder"]) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        single |= made.below("cond_stage_model.transformer.", own)
    if name == "sd2":
        texts = {"text_encoder": made.clip("gelu")}
        # A block more lies in the file, which nothing reads, and the projection behind it.
        own = made.state_of(made.clip("gelu", True, 3)) | made.state_of(texts["text_encoder"])
        single |= made.below("cond_stage_model.model.", made.open_clip(own) | {"logit_scale": torch.ones(())})
    if name == "sdxl":
        texts = {"text_encoder": made.clip(), "text_encoder_2": made.clip("gelu", True)}
        single |= made.below("conditioner.embedders.0.transformer.", made.state_of(texts["text_encoder"]))
        single |= made.below("conditioner.embedders.1.model.", made.open_clip(made.state_of(texts["text_encoder_2"])))
    return unet, vae, texts, single


def without_places(config):
    """The config without what depends on where its files lie, and on how the codec's is laid out."""
    latents = dataclasses.replace(config.latents, sha256=())
    return dataclasses.replace(config, codec="", text="", latents=latents)


@pytest.fixture
def trainer(monkeypatch):
    """The class by which a trainer's file keeps the state of a callback."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kind = type("ModelCheckpoint", (), {"__module__": name})
    for module in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    sys.modules[name].ModelCheckpoint = kind
    return {"callbacks": {kind: {"best_model_score": torch.ones(())}}, "epoch": 3, "optimizer_states": [{0: {}}]}


@pytest.mark.parametrize("name", made.UNETS)
def test_stable_diffusion(name, tmp_path, tokenizer, trainer, capsys):
    unet, vae, texts, single = parts_of(name)
    assert_same(convert_ldm_unet_checkpoint(dict(single), made.UNETS[name]), unet.state_dict())
    assert_same(convert_ldm_vae_checkpoint(dict(single), vae.config), vae.state_dict())
    if name == "sd1":
        file = tmp_path / "model.ckpt"
        torch.save({"state_dict": single, **trainer}, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file({key: value.contiguous().clone() for key, value in single.items()}, file)
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert.main([str(file), str(ours), "--tokenizer", str(tokenizer), "--size", "16"])
    assert "--tokenizer" not in capsys.readouterr().out

    model = read_model(ours)
    assert_same(dump(model.params["network"], model.config.network), unet.state_dict())
    assert model.config.data.size == 8 and model.config.latents.factor == 2
    convert.main([str(ours), str(back), "--to", "diffusers"])
    again = diffusers.UNet2DConditionModel.from_pretrained(back / "unet")
    context = torch.randn(2, 5, made.UNETS[name]["cross_attention_dim"])
    more = {"text_embeds": torch.randn(2, 64), "time_ids": torch.rand(2, 6)} if name == "sdxl" else {}
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor(7), context)
    with torch.no_grad():
        outputs = [net(*inputs, added_cond_kwargs=more).sample for net in (unet, again)]
        assert torch.equal(*outputs)
        picture = torch.randn(1, 4, 4, 4)
        opened = diffusers.AutoencoderKL.from_pretrained(ours / "codec")
        assert torch.equal(vae.decode(picture).sample, opened.decode(picture).sample)
        assert opened.config.scaling_factor == (0.13025 if name == "sdxl" else 0.18215)
        for folder, encoder in texts.items():
            place = ours / "text" / folder
            assert_same(load_file(place / "model.safetensors"), made.state_of(encoder))
            tokens = torch.tensor([[0, 7, 39, 1], [0, 39, 1, 1]])
            one, other = (
                net(tokens, output_hidden_states=True) for net in (encoder, type(encoder).from_pretrained(place))
            )
            assert torch.equal(one.hidden_states[-2], other.hidden_states[-2]) and torch.equal(one[0], other[0])
    # The same as what diffusers' own folder becomes: schedule, defaults, prompts.
    made.pipeline(name, unet, vae, texts).save_pretrained(tmp_path / "theirs")
    convert.main([str(tmp_path / "theirs"), str(tmp_path / "other")])
    assert without_places(model.config) == without_places(read_model(tmp_path / "other").config)
    assert model.config.text and isinstance(model.config.objective.prediction, V if name == "sd2" else Eps)
    prompts = ["A cat!  and a dog's", ""]
    one, other = (open_trained(tmp_path / f, Settings(prompt="a")).reader for f in ("ours", "other"))
    jax.tree.map(np.testing.assert_array_equal, one.conditions(prompts), other.conditions(prompts))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_what_the_file_does_not_tell(tmp_path, capsys):
    *_, single = parts_of("sd2")
    average = {f"model_ema.{n.removeprefix('model.').replace('.', '')}": 2 * v for n, v in single.items() if UNET in n}
    file = tmp_path / "model.safetensors"
    save_file({key: value.contiguous().clone() for key, value in (single | average).items()}, file)
    convert.main([str(file), str(tmp_path / "ours"), "--prediction", "eps"])
    assert "--tokenizer" in capsys.readouterr().out
    model = read_model(tmp_path / "ours")
    assert isinstance(model.config.objective.prediction, Eps) and model.config.data.size == 64
    found = dump_original(model.params["network"], model.config.network)
    name = f"{UNET}middle_block.0.in_layers.2.weight"
    np.testing.assert_array_equal(found[name], 2 * single[name].numpy())


def test_what_is_wrong_is_named(tmp_path, capsys):
    *_, single = parts_of("sd2")

    def refusal(tensors, *args):
        file = tmp_path / "model.safetensors"
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, file)
        with pytest.raises(SystemExit) as stop:
            convert.main([str(file), str(tmp_path / "new"), *args])
        assert stop.value.code == 2 and sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    for part, names in {
        UNET: ("middle_block.0.in_layers.2.weight", "out.2.bias"),
        "first_stage_model.": ("decoder.mid.block_1.norm1.bias", "decoder.conv_out.bias"),
        "cond_stage_model.model.": ("transformer.resblocks.0.attn.in_proj_weight", "ln_final.bias"),
    }.items():
        first, second = (part + name for name in names)
        rest = {key: value for key, value in single.items() if key != second}
        line = refusal(rest | {first: torch.ones(7), f"{first}2": torch.ones(2)})
        assert f"{first} is [7]" in line and f"{first}2 is not known" in line
        assert f"{names[1]} is missing" in line
    bare = {key: value for key, value in single.items() if not key.startswith("first_stage_model.")}
    assert "--vae" in refusal(bare)
    assert "control_model.x is not known" in refusal(single | {"control_model.x": torch.ones(2)})
    assert "--tokenizer" in refusal(single, "--tokenizer", str(tmp_path / "nothing"))


def test_stable_diffusion_3(tmp_path, tokenizer):
    tensors = made.original_sd3(width=128, depth=3, dual=(0,), text=128, pooled=128, channels=16, grid=6)
    config = dict(
        sample_size=128, num_layers=3, attention_head_dim=64, num_attention_heads=2, joint_attention_dim=128,
        caption_projection_dim=128, pooled_projection_dim=128, pos_embed_max_size=6, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )  # fmt: skip
    theirs = convert_sd3_transformer_checkpoint_to_diffusers(dict(tensors))
    diffusers.SD3Transformer2DModel(**config).load_state_dict(theirs)
    vae = made.vae(16, quant=False)
    clips = {"text_encoder": made.clip(projected=True), "text_encoder_2": made.clip("gelu", True)}
    t5 = transformers.T5Config(
        d_model=128, d_kv=16, d_ff=32, num_layers=2, num_heads=2, vocab_size=40, feed_forward_proj="gated-gelu"
    )
    t5 = made.filled(transformers.T5EncoderModel(t5))
    states = [made.state_of(model) for model in (*clips.values(), t5)]
    del states[0]["text_projection.weight"]  # the identity
    states[2].pop("encoder.embed_tokens.weight", None)
    single = made.below(UNET, tensors) | made.below("first_stage_model.", made.original_vae(vae.state_dict()))
    for name, state in zip(("clip_l", "clip_g", "t5xxl"), states, strict=True):
        single |= made.below(f"text_encoders.{name}.transformer.", state)
    save_file({key: value.contiguous().clone() for key, value in single.items()}, tmp_path / "model.safetensors")
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert.main([str(tmp_path / "model.safetensors"), str(ours), "--tokenizer", str(tokenizer)])
    assert read_model(ours).config.data.text  # by the two CLIPs, for T5 has no tokenizer
    convert.main([str(ours), str(back), "--to", "diffusers"])
    assert_same(load_file(back / "transformer" / WEIGHTS), theirs)
    said = json.loads((back / "transformer" / "config.json").read_text())
    assert {key: said[key] for key in config} == {**config, "dual_attention_layers": [0]}
    assert_same(load_file(back / "vae" / WEIGHTS), vae.state_dict())
    assert json.loads((back / "vae" / "config.json").read_text())["shift_factor"] == 0.0609
    identity = load_file(ours / "text" / "text_encoder" / "model.safetensors")["text_projection.weight"]
    assert torch.equal(identity, torch.eye(64))
    for folder, model in (("text_encoder_2", clips["text_encoder_2"]), ("text_encoder_3", t5)):
        opened = type(model).from_pretrained(ours / "text" / folder)
        tokens = torch.tensor([[0, 7, 39, 1]])
        with torch.no_grad():
            assert torch.equal(opened(tokens)[0], model(tokens)[0])


def test_flux(tmp_path):
    config = dict(
        in_channels=64, num_layers=2, num_single_layers=1, attention_head_dim=128, num_attention_heads=1,
        joint_attention_dim=20, pooled_projection_dim=12, guidance_embeds=True,
    )  # fmt: skip
    state = made.filled(diffusers.FluxTransformer2DModel(**config)).state_dict()
    vae = made.vae(16, quant=False)
    transformer = made.original_flux(state, 2, 1)
    save_file({key: value.contiguous().clone() for key, value in transformer.items()}, tmp_path / "flux.safetensors")
    save_file(made.original_vae(vae.state_dict()), tmp_path / "ae.safetensors")
    ours, back = tmp_path / "ours", tmp_path / "back"
    convert.main([str(tmp_path / "flux.safetensors"), str(ours), "--vae", str(tmp_path / "ae.safetensors")])
    convert.main([str(ours), str(back), "--to", "diffusers"])
    assert_same(load_file(back / "transformer" / WEIGHTS), state)
    said = json.loads((back / "transformer" / "config.json").read_text())
    assert {key: said[key] for key in config} == config
    assert_same(load_file(back / "vae" / WEIGHTS), vae.state_dict())
    assert read_model(ours).config.data.channels == 16
