"""The study's networks as pure functions of parameters and running statistics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.dao_e.tasks_data import SYMBOLS, WINDOW


class Network(NamedTuple):
    """A flax.nnx model without its arrays."""

    init: Callable[[jax.Array], tuple[Any, Any]]  # key -> parameters, statistics
    apply: Callable[..., tuple[jax.Array, Any]]
    """(parameters, statistics, inputs, training) -> outputs, statistics."""


def network(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """The pure functions of a model."""

    def init(key: jax.Array) -> tuple[Any, Any]:
        model = make(nnx.Rngs(key))
        return _pure(model, nnx.Param), _pure(model, nnx.BatchStat)

    model: Any = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphs = {}
    for training in (True, False):
        model.train() if training else model.eval()
        graphs[training] = nnx.graphdef(model)

    def apply(
        params: Any, statistics: Any, inputs: jax.Array, training: bool
    ) -> tuple[jax.Array, Any]:
        merged: Any = nnx.merge(graphs[training], params, statistics)
        outputs = merged(inputs)
        return outputs, _pure(merged, nnx.BatchStat)

    return Network(init, apply)


def _pure(model: nnx.Module, kind: type[nnx.Variable]) -> Any:
    return nnx.to_pure_dict(nnx.state(model, kind))


class Convnet(nnx.Module):
    """Two convolutions with batch norm, the second of stride 2, and a mean over places."""

    def __init__(self, widths: tuple[int, int], classes: int, *, rngs: nnx.Rngs) -> None:
        first, second = widths
        self.first = nnx.Conv(1, first, (3, 3), use_bias=False, rngs=rngs)
        self.first_norm = nnx.BatchNorm(first, rngs=rngs)
        self.second = nnx.Conv(first, second, (3, 3), strides=2, use_bias=False, rngs=rngs)
        self.second_norm = nnx.BatchNorm(second, rngs=rngs)
        self.head = nnx.Linear(second, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits [batch, classes] of images [batch, height, width, 1]."""
        hidden = jax.nn.relu(self.first_norm(self.first(images)))
        hidden = jax.nn.relu(self.second_norm(self.second(hidden)))
        return self.head(hidden.mean((1, 2)))


class Block(nnx.Module):
    """Causal self-attention and a perceptron, each behind a layer norm and beside a skip."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """From [batch, places, width] to the same shape."""
        mask = nnx.make_causal_mask(hidden[..., 0])
        hidden = hidden + self.attention(self.attention_norm(hidden), mask=mask)
        return hidden + self.narrow(jax.nn.gelu(self.widen(self.norm(hidden))))


class Transformer(nnx.Module):
    """A character-level language model of the decoder kind."""

    def __init__(self, width: int, heads: int, layers: int, *, rngs: nnx.Rngs) -> None:
        self.symbols = nnx.Embed(len(SYMBOLS), width, rngs=rngs)
        self.places = nnx.Embed(WINDOW - 1, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, len(SYMBOLS), rngs=rngs)

    def __call__(self, symbols: jax.Array) -> jax.Array:
        """Logits [batch, places, symbols] of the next symbol, of symbols [batch, places]."""
        places = jnp.broadcast_to(jnp.arange(symbols.shape[1]), symbols.shape)
        hidden = self.symbols(symbols) + self.places(places)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))
