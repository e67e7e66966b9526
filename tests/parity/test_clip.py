"""CLIP against transformers' networks with the same random weights, and its tokenizer."""

import functools
import re

import jax
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

from small_tokenizers import clip_tokenizer  # noqa: E402
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD  # noqa: E402

from jaxdiff.networks.clip import CLIP, TextTower, VisionTower  # noqa: E402
from jaxdiff.networks.vit import gelu  # noqa: E402
from jaxdiff.pretrained import clip  # noqa: E402
from jaxdiff.pretrained.clip import load_clip, load_text, load_vision, open_clip_text, read_tokenizer  # noqa: E402
from jaxdiff.pretrained.features import open_features  # noqa: E402
from jaxdiff.pretrained.weights import read_weights  # noqa: E402

VISION = VisionTower(width=32, depth=3, heads=4, patch=8, size=24, embedding=12)
TEXT = TextTower(width=24, depth=3, heads=2, vocab=90, length=10, embedding=12, eos=85)
NETWORK = CLIP(vision=VISION, text=TEXT)
TOKENS = np.array([[3, 7, 85, 0, 88, 85, 0], [1, 2, 89, 3, 4, 5, 85], [6, 85, 85, 85, 85, 85, 85]], np.int32)
IMAGES = np.random.default_rng(0).standard_normal((2, 24, 24, 3), np.float32)


def config(eos=85, activation="quick_gelu"):
    def blocks(tower):
        return {
            "hidden_size": tower.width,
            "intermediate_size": 4 * tower.width,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "projection_dim": 12,
            "hidden_act": activation,
        }

    text = {"vocab_size": 90, "max_position_embeddings": 10, "eos_token_id": eos, "bos_token_id": 3, "pad_token_id": 0}
    vision = {"image_size": 24, "patch_size": 8}
    return transformers.CLIPConfig(
        text_config=blocks(TEXT) | text, vision_config=blocks(VISION) | vision, projection_dim=12
    )


# Compiles fast and runs slowly.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_weights(model):
    """Every weight other than its initial value, so that none hides a branch; tokens small, so that epsilons tell."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
            if "embeddings" in name:
                parameter *= 0.01
    return model.eval()


def saved(model, path):
    model.save_pretrained(path)
    return read_weights(path / "model.safetensors")


@pytest.fixture(scope="module")
def model():
    return random_weights(transformers.CLIPModel(config()))


@pytest.fixture(scope="module")
def tensors(model, tmp_path_factory):
    return saved(model, tmp_path_factory.mktemp("clip"))


def close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def run(network, params, *inputs):
    return quickly(network.apply)({"params": params}, *inputs)


def test_both_towers(model, tensors):
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(TOKENS).long(),
            pixel_values=torch.from_numpy(IMAGES.transpose(0, 3, 1, 2)),
            output_hidden_states=True,
        )
        text = model.text_projection(theirs.text_model_output.last_hidden_state[[0, 1, 2], [2, 6, 1]])
    params = load_clip(tensors, NETWORK)
    close(run(NETWORK, params, IMAGES, TOKENS), theirs.logits_per_image)

    vision = run(VISION, params["vision"], IMAGES)
    close(vision.last, theirs.vision_model_output.last_hidden_state)
    close(vision.penultimate, theirs.vision_model_output.hidden_states[-2])
    close(vision.pooled, model.vision_model.post_layernorm(theirs.vision_model_output.last_hidden_state[:, 0]))
    close(vision.embedding, model.visual_projection(torch.tensor(np.asarray(vision.pooled))))
    close(vision.embedding / np.linalg.norm(vision.embedding, axis=-1, keepdims=True), theirs.image_embeds)

    ours = run(TEXT, params["text"], TOKENS)
    close(ours.last, theirs.text_model_output.last_hidden_state)
    close(ours.penultimate, theirs.text_model_output.hidden_states[-2])
    close(ours.embedding, text)
    close(ours.embedding / np.linalg.norm(ours.embedding, axis=-1, keepdims=True), theirs.text_embeds)


def test_the_older_rule_for_the_end_of_a_text(tmp_path):
    """Configurations from before the fix say 2 and mean the highest token. Here: another activation, one tower."""
    theirs = random_weights(transformers.CLIPTextModel(config(eos=2, activation="gelu").text_config))
    tower = TEXT.clone(eos=None, embedding=0, activation=gelu)
    ours = run(tower, load_text(saved(theirs, tmp_path), tower), TOKENS)
    with torch.no_grad():
        out = theirs(torch.from_numpy(TOKENS).long())
    close(ours.pooled, out.pooler_output)
    np.testing.assert_array_equal(ours.embedding, ours.pooled)
    np.testing.assert_array_equal(ours.pooled, ours.last[[0, 1, 2], [4, 2, 1]])


def test_towers_on_their_own(tensors, tmp_path):
    """From files of one tower, and the same from a file of both."""
    text = random_weights(transformers.CLIPTextModelWithProjection(config().text_config))
    vision = random_weights(transformers.CLIPVisionModelWithProjection(config().vision_config))
    with torch.no_grad():
        text_embeds = text(torch.from_numpy(TOKENS).long()).text_embeds
        image_embeds = vision(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2))).image_embeds
    close(run(TEXT, load_text(saved(text, tmp_path / "text"), TEXT), TOKENS).embedding, text_embeds)
    close(run(VISION, load_vision(saved(vision, tmp_path / "vision"), VISION), IMAGES).embedding, image_embeds)

    both = load_clip(tensors, NETWORK)
    jax.tree.map(np.testing.assert_array_equal, load_vision(tensors, VISION), both["vision"])
    jax.tree.map(np.testing.assert_array_equal, load_text(tensors, TEXT), both["text"])


def test_openais_naming(tensors):
    """The same weights by OpenAI's names: one matrix for query, key and value, projections from the right."""
    renamed = {"input_resolution": np.array(24), "context_length": np.array(10), "vocab_size": np.array(90)}
    for name, array in tensors.items():
        name = name.replace("vision_model.encoder.layers", "visual.transformer.resblocks")
        name = name.replace("text_model.encoder.layers", "transformer.resblocks")
        name = name.replace("layer_norm1", "ln_1").replace("layer_norm2", "ln_2").replace("self_attn.out", "attn.out")
        name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
        name = name.replace("vision_model.pre_layrnorm", "visual.ln_pre")
        name = name.replace("vision_model.post_layernorm", "visual.ln_post")
        name = name.replace("vision_model.embeddings.patch_embedding", "visual.conv1")
        name = name.replace("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding")
        name = name.replace("vision_model.embeddings", "visual").replace("text_model.final_layer_norm", "ln_final")
        name = name.replace("text_model.embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("text_model.embeddings.token_embedding", "token_embedding")
        if name in ("visual_projection.weight", "text_projection.weight"):
            name = {"v": "visual.proj", "t": "text_projection"}[name[0]]
            array = array.T
        renamed[name] = array
    for name in [name for name in renamed if "self_attn.q_proj" in name]:
        parts = [renamed.pop(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        new = re.sub(r"self_attn\.q_proj\.(\w+)", r"attn.in_proj_\1", name)
        renamed[new] = np.concatenate(parts)
    assert not set(renamed) & (set(tensors) - {"logit_scale"})
    jax.tree.map(np.testing.assert_array_equal, load_clip(renamed, NETWORK), load_clip(tensors, NETWORK))


def test_older_files_and_other_files(tensors):
    older = tensors | {"text_model.embeddings.position_ids": np.arange(10)[None]}
    half = {name: array.astype(np.float16) for name, array in older.items()}
    for leaf in jax.tree.leaves(load_clip(half, NETWORK)):
        assert leaf.dtype == np.float32
    for network, message in (
        (NETWORK.clone(text=TEXT.clone(depth=2)), "text.blocks"),
        (NETWORK.clone(vision=VISION.clone(size=32)), "vision.positions is"),
    ):
        with pytest.raises(ValueError, match=message):
            load_clip(older, network)
    with pytest.raises(ValueError, match=r"projection\.weight is not known"):
        load_vision(older, VISION.clone(embedding=0))
    with pytest.raises(ValueError, match="extra is not known"):
        load_text(older | {"extra": np.zeros(2)}, TEXT)
    with pytest.raises(ValueError, match=r"norm_out\.weight is missing"):
        load_vision({k: v for k, v in older.items() if "post_layernorm" not in k}, VISION)


@pytest.mark.parametrize("pad", [None, 0])
def test_tokens(pad, tmp_path):
    theirs = clip_tokenizer()
    theirs.save_pretrained(tmp_path)
    texts = ["A cat,  and a DOG!", "", "cat dog " * 9]
    ours = read_tokenizer(tmp_path / "tokenizer.json", length=12, pad=pad)(texts)
    expected = theirs(texts, padding="max_length", max_length=12, truncation=True)
    tokens, mask = np.array(expected["input_ids"]), np.array(expected["attention_mask"], bool)
    if pad is not None:
        tokens = np.where(mask, tokens, pad)
    assert ours.dtype == np.int32
    np.testing.assert_array_equal(ours, tokens)
    # "cat" and "dog" are one token each, so the longest text is cut; every text still ends.
    assert mask.sum(1).tolist() == [11, 2, 12] and (ours == theirs.eos_token_id).any(axis=1).all()


def test_a_tokenizer_without_start_and_end_is_refused(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra parity")
    tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"not start and end: use CLIP's tokenizer\.json"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_from_files_to_features(model, tensors, tmp_path, monkeypatch):
    """Pictures and texts as their users prepare them: Pillow, the published moments, the tokenizer."""
    monkeypatch.setattr(clip, "NETWORKS", {"clip-b32": NETWORK})
    saved(model, tmp_path)
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), np.uint8)
    pixels = [np.asarray(Image.fromarray(p).resize((24, 24), Image.Resampling.BICUBIC)) for p in pictures]
    mean, std = (np.array(values, np.float32) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    normal = (np.stack(pixels).astype(np.float32) / 255 - mean) / std
    texts = ["a cat", "dog, dog!", "cat dog" * 9]
    ids = tokenizer(texts, padding="max_length", max_length=10, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        image = model.get_image_features(torch.from_numpy(normal.transpose(0, 3, 1, 2))).pooler_output
        text = model.get_text_features(ids).pooler_output

    net = open_features("clip-b32", tmp_path / "model.safetensors")
    assert (net.name, net.size, net.dims, net.resize) == ("clip-b32", 24, 12, "pillow-bicubic")
    close(quickly(net.forward)(net.params, pictures)["features"], image)
    embed = open_clip_text("clip-b32", tmp_path / "model.safetensors", tmp_path / "tokenizer.json")
    close(embed(texts), text)
    with pytest.raises(FileNotFoundError, match=r"clip-b32 has no weights here: download model\.safetensors"):
        open_features("clip-b32", None)
