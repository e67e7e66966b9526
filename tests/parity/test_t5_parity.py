"""T5 v1.1's encoder against transformers' network with the same random weights; published sizes by shape alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

from jaxdiff.networks.t5 import T5_SMALL, T5_XXL, bucket  # noqa: E402
from jaxdiff.pretrained.t5 import dump, load, t5_config  # noqa: E402

TINY = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 5,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
}
SMALL = TINY | {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
SMALL |= {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
XXL = SMALL | {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 17)).astype(np.int32)
MASK = np.arange(17) < np.array([[17], [6]])


def published(config):
    return transformers.T5EncoderModel(transformers.T5Config(**config, tie_word_embeddings=False))


@pytest.fixture(scope="module")
def model():
    model = published(TINY)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # no weight has its initial value, so that none hides a branch
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def tensors(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("mask", [None, MASK], ids=["every token", "mask"])
def test_features(model, tensors, mask):
    with torch.no_grad():
        seen = None if mask is None else torch.from_numpy(mask).long()
        theirs = model(torch.from_numpy(TOKENS).long(), attention_mask=seen).last_hidden_state.numpy()
    network = t5_config(TINY)
    quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    ours = np.asarray(quickly(network.apply)({"params": load(tensors, network)}, TOKENS, mask))
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("buckets, distance", [(32, 128), (8, 12)])
def test_distances(buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    place = torch.arange(600)
    theirs = T5Attention._relative_position_bucket(place[None] - place[:, None], True, buckets, distance)
    np.testing.assert_array_equal(bucket(600, buckets, distance), theirs.numpy())


def test_there_and_back(tensors):
    network = t5_config(TINY)
    once = {name: value for name, value in tensors.items() if name != "encoder.embed_tokens.weight"}
    params = load(tensors, network)
    back = dump(params, network)
    assert back.keys() == once.keys()
    for name, value in once.items():
        np.testing.assert_array_equal(back[name], value)
    whole = once | {"decoder.final_layer_norm.weight": np.zeros(2), "lm_head.weight": np.zeros(2)}
    jax.tree.map(np.testing.assert_array_equal, load(whole, network), params)


def test_other_files(tensors):
    network = t5_config(TINY)
    with pytest.raises(ValueError, match=r"shared\.weight and encoder\.embed_tokens\.weight differ"):
        load(tensors | {"shared.weight": 2 * tensors["shared.weight"]}, network)
    with pytest.raises(ValueError, match="positions"):
        load(tensors, network.clone(buckets=16))
    for name, value in (("feed_forward_proj", "relu"), ("d_ff", None), ("num_layers", 0)):
        with pytest.raises(ValueError, match=rf"config\.json: {name} = "):
            t5_config(TINY | {name: value})


@pytest.mark.parametrize("config, network, total", [(SMALL, T5_SMALL, 35_332_800), (XXL, T5_XXL, 4_762_310_656)])
def test_published_sizes(config, network, total):
    """Names and shapes of every tensor, and how many numbers there are, without making one."""
    assert t5_config(config) == network
    with torch.device("meta"):
        theirs = {name: tuple(value.shape) for name, value in published(config).state_dict().items()}
    assert theirs.pop("encoder.embed_tokens.weight") == theirs["shared.weight"]
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
    # Arrays of one number, seen at every place: they have the shapes and take no memory.
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    assert {name: value.shape for name, value in dump(empty, network).items()} == theirs
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total
