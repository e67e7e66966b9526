"""The published text encoders by shape alone: names and shapes of every tensor, and how many numbers there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

from jaxdiff.networks.clip import CLIP_L14, OPENCLIP_BIGG_TEXT, OPENCLIP_H_TEXT  # noqa: E402
from jaxdiff.pretrained.clip import dump  # noqa: E402
from jaxdiff.pretrained.clip_text import text_config  # noqa: E402

COMMON = {"vocab_size": 49408, "max_position_embeddings": 77, "layer_norm_eps": 1e-5, "bos_token_id": 0}
L14 = COMMON | {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
L14 |= {"hidden_act": "quick_gelu", "projection_dim": 768, "eos_token_id": 2}
H = COMMON | {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
H |= {"hidden_act": "gelu", "projection_dim": 512, "eos_token_id": 2}
BIGG = COMMON | {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
BIGG |= {"hidden_act": "gelu", "projection_dim": 1280, "eos_token_id": 2}

ENCODERS = {
    "SD 1, SDXL, FLUX": (L14, False, CLIP_L14.text.clone(embedding=0, eos=None), 123_060_480),
    "SD 3": (L14, True, CLIP_L14.text.clone(eos=None), 123_650_304),
    "SD 2": (H, False, OPENCLIP_H_TEXT, 340_387_840),
    "SDXL, SD 3": (BIGG, True, OPENCLIP_BIGG_TEXT, 694_659_840),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_published_clips(name):
    json, projected, tower, total = ENCODERS[name]
    assert text_config(json, projected) == tower.clone(hidden=json["intermediate_size"])
    kind = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    with torch.device("meta"):
        theirs = {n: tuple(t.shape) for n, t in kind(transformers.CLIPTextConfig(**json)).state_dict().items()}
    theirs = {n if n.startswith("text_") else f"text_model.{n}": shape for n, shape in theirs.items()}
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), tokens)["params"]
    # Arrays of one number, seen at every place: they have the shapes and take no memory.
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    theirs = {n: shape for n, shape in theirs.items() if not n.endswith("position_ids")}
    assert {n: array.shape for n, array in dump({"text": empty}).items()} == theirs
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == total
