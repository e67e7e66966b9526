"""BERT against transformers' network with the same random weights."""

import functools

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra parity")
transformers = pytest.importorskip("transformers", reason="needs the extra parity")

from jaxdiff.networks.bert import Bert  # noqa: E402
from jaxdiff.pretrained.minilm import load  # noqa: E402
from jaxdiff.pretrained.weights import read_weights  # noqa: E402

NETWORK = Bert(width=24, depth=3, heads=3, hidden=40, vocab=50, length=10)
TOKENS = np.array([[2, 5, 9, 7, 3, 0, 0, 0], [2, 8, 3, 0, 0, 0, 0, 0], [2, 11, 12, 13, 14, 15, 16, 3]], np.int32)
MASK = np.array([[True] * 5 + [False] * 3, [True] * 3 + [False] * 5, [True] * 8])


@pytest.fixture(scope="module")
def model():
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=10,
    )
    model = transformers.BertModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # every weight other than its initial value, so that none hides a branch
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def tensors(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return read_weights(folder / "model.safetensors")


def test_hidden_states(model, tensors):
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS).long(), attention_mask=torch.from_numpy(MASK).long()).last_hidden_state
    quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    ours = np.asarray(quickly(NETWORK.apply)({"params": load(tensors, NETWORK)}, TOKENS, MASK))
    theirs = theirs.numpy()
    assert np.abs(ours - theirs)[MASK].max() < 1e-4 * np.abs(theirs[MASK]).max()


def test_other_files(tensors):
    named = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    named["bert.embeddings.position_ids"] = np.arange(10)[None]
    jax.tree.map(np.testing.assert_array_equal, load(named, NETWORK), load(tensors, NETWORK))
    with pytest.raises(ValueError, match="blocks"):
        load(tensors, NETWORK.clone(depth=2))
    with pytest.raises(ValueError, match="extra is not known"):
        load({**tensors, "extra": np.zeros(2)}, NETWORK)
