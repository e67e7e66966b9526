"""Prompts of published text-to-image pipelines: small ones of diffusers, saved, converted, and sampled by both."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra parity")
diffusers = pytest.importorskip("diffusers", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

import small_pipelines as small  # noqa: E402
from small_tokenizers import as_published, clip_tokenizer  # noqa: E402

import sample  # noqa: E402
from jaxdiff import families  # noqa: E402
from jaxdiff.commands import convert  # noqa: E402
from jaxdiff.pretrained import safetensors  # noqa: E402
from jaxdiff.pretrained.prompts import RECIPES, open_prompts  # noqa: E402
from jaxdiff.sampling.sample import image_keys, initial  # noqa: E402
from jaxdiff.settings import Settings  # noqa: E402
from jaxdiff.starts import further  # noqa: E402
from jaxdiff.texts import Reader  # noqa: E402
from jaxdiff.trained import open_trained, with_prompt  # noqa: E402

INDICES = np.arange(8, dtype=np.int32)  # a multiple of the devices
STEPS, SIDE = 5, 16
PROMPT, AWAY = "A cat!  and a DOG's ca", "dog, dog"
LONG = 150
PROMPTS = [PROMPT, "", "dog " * LONG]
EULER, FLUX = "EulerDiscreteScheduler", "FluxPipeline"


def saved(name, tmp_path, monkeypatch):
    """(diffusers' pipeline, its folder, ours, which was moved after it was made)."""
    monkeypatch.setitem(families.NATIVE, "FluxTransformer2DModel", 8)  # and not 128, which takes long
    pipeline = small.PIPELINES[name]()
    pipeline.set_progress_bar_config(disable=True)
    theirs, folder = tmp_path / "theirs", tmp_path / "ours"
    pipeline.save_pretrained(theirs)
    # Each of the ways in which the files of texts were published.
    if name == "sdxl":
        for tokenizer in ("tokenizer", "tokenizer_2"):
            as_published(theirs / tokenizer)
    if name == "sd2":
        (theirs / "text_encoder" / "model.safetensors").unlink()
        torch.save(pipeline.text_encoder.state_dict(), theirs / "text_encoder" / "pytorch_model.bin")
    if name == "flux":
        (theirs / "text_encoder_2" / "model.safetensors").unlink()
        pipeline.text_encoder_2.save_pretrained(theirs / "text_encoder_2", max_shard_size="9KB")
        assert len(list((theirs / "text_encoder_2").glob("model-0000*.safetensors"))) > 1
    convert.main([str(theirs), str(tmp_path / "first")])
    (tmp_path / "first").rename(folder)
    return pipeline, theirs, folder


def opened(folder, **settings):
    return open_trained(folder, Settings(batch_size=len(INDICES), steps=STEPS, seed=3, **settings))


def noise_for(trained, pipeline):
    """Our noise as what the pipeline starts from."""
    first = jax.tree.map(lambda leaf: leaf[0], trained.levels)
    data = trained.config.data
    x = initial(image_keys(3, jnp.asarray(INDICES)), (data.size, data.size, data.channels), first)
    x = torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy())
    if type(pipeline.scheduler).__name__ == EULER:  # it thinks of noise that was not made smaller
        pipeline.scheduler.set_timesteps(STEPS)
        return x / float(first.alpha) / pipeline.scheduler.init_noise_sigma
    return pipeline._pack_latents(x, *x.shape) if type(pipeline).__name__ == FLUX else x


def sampled(pipeline, x, scale, negative=None, **more):
    """The images of the pipeline, of `PROMPT`."""
    kind = type(pipeline).__name__
    if "PixArt" in kind:
        more |= {"use_resolution_binning": False, "clean_caption": False}
        sample_size = 128 if pipeline.transformer.config.use_additional_conditions else 8
        pipeline.transformer.register_to_config(sample_size=sample_size)  # alpha tells sizes at this one alone
    if kind == FLUX:
        more |= {"true_cfg_scale": scale, "guidance_scale": 3.5} | more
        negative = negative or ""
    else:
        more |= {"guidance_scale": scale}
    if negative is not None or "PixArt" not in kind:
        more |= {"negative_prompt": None if negative is None else [negative] * 8}
    return pipeline(
        prompt=[PROMPT] * 8,
        height=SIDE,
        width=SIDE,
        latents=x.clone(),
        num_inference_steps=STEPS,
        output_type="np",
        **more,
    ).images


def off(images, theirs):
    """The largest difference, in 255ths, of pictures that show something."""
    assert images.shape == theirs.shape and np.ptp(images.astype(int)) > 60
    return np.abs(images.astype(int) - np.round(255 * theirs)).max()


def differs(images, others):
    """Whether pictures differ by more than a wrong rounding."""
    return np.abs(images.astype(int) - others.astype(int)).max() > 2


@pytest.mark.parametrize("name", small.PIPELINES)
def test_pictures_of_a_prompt(name, tmp_path, monkeypatch, caplog):
    pipeline, theirs, folder = saved(name, tmp_path, monkeypatch)
    trained = opened(folder, prompt=PROMPT, cfg_scale=3.0)
    assert_same_features(pipeline, trained.reader, caplog)
    x = noise_for(trained, pipeline)
    images = trained.images(INDICES)
    error = off(images, sampled(pipeline, x, 3.0))
    print(f"{name}: {error} of 255")
    assert error <= 1, error
    settings = dataclasses.replace(trained.settings, negative_prompt=AWAY)
    away = dataclasses.replace(trained, settings=settings).images(INDICES)
    assert off(away, sampled(pipeline, x, 3.0, AWAY)) <= 1
    other = with_prompt(trained, "a dog").images(INDICES)
    assert differs(images, away) and differs(images, other)
    if name == "sd1":
        assert_command(folder, tmp_path, images[0])
    if name == "flux":
        told = opened(folder, prompt=PROMPT, cfg_scale=3.0, distilled_scale=1.5).images(INDICES)
        assert off(told, sampled(pipeline, x, 3.0, guidance_scale=1.5)) <= 1 and differs(images, told)
    assert_same_files(theirs, folder, tmp_path / "back")


def assert_command(folder, tmp_path, image):
    """sample.py makes the same picture of a prompt from a file."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text(f"a dog\n{PROMPT}\n")
    flags = ["--prompts", prompts, "--num", "1", "--batch-size", "8", "--steps", STEPS, "--seed", 3, "--cfg-scale", "3"]
    sample.main([str(arg) for arg in (folder, "--out", out, *flags)])
    np.testing.assert_array_equal(np.asarray(Image.open(out / "0001" / "images" / "000000.png")), image)
    assert len(json.loads((out / "0001" / "info.json").read_text())["reader_sha256"]) == 64
    assert further(str(folder)).text == f"published={folder / 'text'}"  # what trains it further reads the same


def assert_same_files(theirs, folder, back):
    """Converted back, every file is what it was: tensors bit by bit, what JSON files say, and all others."""
    convert.main([str(folder), str(back), "--to", "diffusers"])
    files = [file for file in theirs.rglob("*") if file.is_file()]
    assert {f.relative_to(theirs) for f in files} == {f.relative_to(back) for f in back.rglob("*") if f.is_file()}
    for file in files:
        other = back / file.relative_to(theirs)
        if file.suffix == ".safetensors":
            want, got = safetensors.read(file), safetensors.read(other)
            assert want.keys() == got.keys()
            for tensor, array in want.items():
                np.testing.assert_array_equal(got[tensor], array, err_msg=tensor)
        elif file.suffix == ".json":
            assert json.loads(other.read_text()) == json.loads(file.read_text())
        else:
            assert other.read_bytes() == file.read_bytes()


def features(pipeline, texts: Sequence[str], negative=None):
    """The leaves of `texts` by diffusers, and those that guidance leads away from."""
    kind, texts = type(pipeline).__name__, list(texts)
    with torch.no_grad():
        if kind == "StableDiffusionPipeline":
            tokens, away = pipeline.encode_prompt(texts, "cpu", 1, True, negative)
            return {"text_tokens": tokens}, {"text_tokens": away}
        if kind == FLUX:
            tokens, pooled, _ = pipeline.encode_prompt(texts, texts)
            gone, gone_pooled, _ = pipeline.encode_prompt([""] * len(texts), [""] * len(texts))
        elif "PixArt" in kind:
            tokens, mask, gone, gone_mask = pipeline.encode_prompt(texts, negative_prompt=negative or "")
            return {"text_tokens": tokens, "text_mask": mask}, {"text_tokens": gone, "text_mask": gone_mask}
        elif kind == "StableDiffusion3Pipeline":
            tokens, gone, pooled, gone_pooled = pipeline.encode_prompt(texts, None, None, negative_prompt=negative)
        else:
            tokens, gone, pooled, gone_pooled = pipeline.encode_prompt(texts, negative_prompt=negative)
    return {"text_tokens": tokens, "text_pooled": pooled}, {"text_tokens": gone, "text_pooled": gone_pooled}


def assert_same_features(pipeline, reader, caplog):
    """The leaves of prompts and of their absence are diffusers', and what is cut is told."""
    name = type(pipeline).__name__.removesuffix("Pipeline")
    want, away = features(pipeline, PROMPTS)
    with caplog.at_level(logging.WARNING, "jaxdiff"):
        got = reader.conditions(PROMPTS)
    gone = reader.away(None, len(PROMPTS))
    for leaves, theirs in ((got, want), (gone, away)):
        for leaf, array in theirs.items():
            array = array.float().numpy()
            ours = leaves.get(leaf, np.zeros_like(array))  # what is left out is absent, which is zero
            error = np.abs(ours - array).max() / max(np.abs(array).max(), 1e-6)
            print(f"{name} {leaf}: {error:.1e}")
            assert error < 1e-4, (leaf, error)
    assert got.keys() - {"size", "guidance_scale"} == want.keys()
    # Of the last prompt each kind of encoder tells what it has not read, once.
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("jaxdiff")]
    read = {"PixArtAlpha": {"T5": 119}, "PixArtSigma": {}}.get(name, {"CLIP": 75})
    assert len(lines) == len(read)
    for kind, words in read.items():
        (line,) = [line for line in lines if line.startswith(kind)]
        assert line.endswith(repr(("dog " * (LONG - words)).strip())), line


def reader_of(folder, width, parts=1):
    """The reader of diffusers' own folder."""
    length = RECIPES[json.loads((folder / "model_index.json").read_text())["_class_name"]].length
    prompts = open_prompts(folder, width, length, parts)
    return Reader(prompts.encode, prompts.sha256, prompts.ids, prompts.empty)


@pytest.mark.parametrize(("make", "width"), [(small.sdxl, 12), (small.sd3, 20)])
def test_pipelines_of_another_kind(make, width, tmp_path, caplog):
    """SDXL without zeros for the empty prompt, SD 3 without a T5."""
    pipeline = make(False)
    pipeline.save_pretrained(tmp_path)
    assert_same_features(pipeline, reader_of(tmp_path, width), caplog)


def test_long_prompts_in_parts(tmp_path, caplog):
    small.sdxl().save_pretrained(tmp_path)
    once, twice = (reader_of(tmp_path, 12, parts) for parts in (1, 2))
    words = "dog " * 75
    short, full, empty = (once.conditions([text])["text_tokens"] for text in (PROMPT, words, ""))
    with caplog.at_level(logging.WARNING, "jaxdiff"):
        found = twice.conditions([PROMPT, words * 2, "dog " * 151])
    for tokens, want in zip(found["text_tokens"], ((short, empty), (full, full), (full, full)), strict=True):
        np.testing.assert_allclose(tokens, np.concatenate(want, axis=1)[0], atol=1e-5)
    np.testing.assert_allclose(found["text_pooled"][:1], once.conditions([PROMPT])["text_pooled"], atol=1e-5)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("jaxdiff")]
    assert line.endswith("'dog'") and once.sha256 != twice.sha256


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    """diffusers' folder of a small Stable Diffusion 1."""
    folder = tmp_path_factory.mktemp("sd1")
    small.sd().save_pretrained(folder)
    return folder


def test_parts_that_are_left_out_are_named_no_more(sd1, tmp_path):
    """What checks pictures, and is not converted; the folder opens in diffusers without it."""
    shutil.copytree(sd1, tmp_path / "theirs")
    index = json.loads((sd1 / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (tmp_path / "theirs" / "model_index.json").write_text(json.dumps(index))
    for part in ("text_encoder/flax_model.msgpack", "text_encoder/model.fp16.safetensors"):  # other kinds of weights
        (tmp_path / "theirs" / part).write_bytes(b"x")
    convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    encoder = tmp_path / "ours" / "text" / "text_encoder"
    assert sorted(file.name for file in encoder.iterdir()) == ["config.json", "model.safetensors"]
    convert.main([str(tmp_path / "ours"), str(tmp_path / "back"), "--to", "diffusers"])
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "back")
    assert again.safety_checker is None and again.tokenizer("a cat").input_ids == clip_tokenizer()("a cat").input_ids


def test_without_encoders_it_says_so(sd1, tmp_path, capsys):
    shutil.copytree(sd1, tmp_path / "theirs")
    shutil.rmtree(tmp_path / "theirs" / "text_encoder")
    convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    assert "note: without text_encoder prompts are not read" in capsys.readouterr().out
    with pytest.raises(ValueError, match="knows no texts"):
        opened(tmp_path / "ours", prompt="a cat")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ({"use_attention_mask": True}, "use_attention_mask = True"),
        ({"hidden_size": 16}, "tokens of 16 channels, and the network takes 12"),
    ],
)
def test_encoders_that_are_refused(change, says, sd1, tmp_path, capsys):
    shutil.copytree(sd1, tmp_path / "theirs")
    file = tmp_path / "theirs" / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    capsys.readouterr()  # what diffusers says when it saves
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "theirs"), str(tmp_path / "ours")])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_tokens_of_clip(pad, layout, tmp_path):
    from jaxdiff.pretrained.clip_text import open_tokenizer

    clip_tokenizer(pad).save_pretrained(tmp_path)
    if layout == "vocab.json":
        as_published(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = ["A cat,  and a DOG!", "", "it's 10 o'clock!!", "é ü <|endoftext|> dog", "\ncat\t2", "cat dog " * 9]
    want = theirs(texts, padding="max_length", max_length=12, truncation=True)
    got = open_tokenizer(tmp_path, 12)(texts)
    np.testing.assert_array_equal(got.ids, np.array(want["input_ids"]))
    np.testing.assert_array_equal(got.mask, np.array(want["attention_mask"], bool))
    assert got.cut[:2] == ("", "") and got.cut[-1] == "cat dog cat dog cat dog cat dog"
