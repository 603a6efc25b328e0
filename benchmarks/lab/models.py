"""The networks that studies train, as pure functions of parameters and running statistics."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))  # of text
WINDOW = 33  # characters of a window of text: each but the first is predicted
# Of batch norm's running statistics; flax's 0.99 remembers more than a short run.
MOMENTUM = 0.9
PIECE = 1000  # images that are scored at once


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


def in_pieces(net: Network) -> Network:
    """The network, which outside of training takes many inputs piece by piece, as they fit."""

    def apply(params: Any, statistics: Any, inputs: jax.Array, training: bool) -> Any:
        if training:
            return net.apply(params, statistics, inputs, True)
        pieces = [
            net.apply(params, statistics, inputs[at : at + PIECE], False)[0]
            for at in range(0, len(inputs), PIECE)
        ]
        return jnp.concatenate(pieces), statistics

    return net._replace(apply=apply)


class MLP(nnx.Module):
    """A multi-layer perceptron with ReLU between its layers, over flattened inputs."""

    def __init__(self, widths: tuple[int, ...], *, rngs: nnx.Rngs) -> None:
        layers = [nnx.Linear(*sizes, rngs=rngs) for sizes in pairwise(widths)]
        self.layers = nnx.List(layers)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Logits of shape [batch, classes] for inputs of shape [batch, ...]."""
        hidden = inputs.reshape(inputs.shape[0], -1)
        for layer in self.layers[:-1]:
            hidden = jax.nn.relu(layer(hidden))
        return self.layers[-1](hidden)


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


class DecoderBlock(nnx.Module):
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
        self.blocks = nnx.List([DecoderBlock(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, len(SYMBOLS), rngs=rngs)

    def __call__(self, symbols: jax.Array) -> jax.Array:
        """Logits [batch, places, symbols] of the next symbol, of symbols [batch, places]."""
        places = jnp.broadcast_to(jnp.arange(symbols.shape[1]), symbols.shape)
        hidden = self.symbols(symbols) + self.places(places)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))


class Architecture(NamedTuple):
    """What distinguishes one network of the family from another."""

    widths: tuple[int, ...]  # channels of each stage
    blocks: int  # in each stage
    stem_stride: int = 1


RESNETS: dict[str, Architecture] = {
    "resnet18": Architecture((64, 128, 256, 512), 2),
    # For CPUs, where XLA's gradient of a kernel takes four times as long as the convolution
    # if 32 channels have 16 x 16 places, and else as long: the first stage is a narrow one.
    "resnet8": Architecture((16, 64, 128), 1, stem_stride=2),
}


class ResidualBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.first = _convolution(width_in, width, 3, stride, rngs)
        self.first_norm = _norm(width, rngs)
        self.second = _convolution(width, width, 3, 1, rngs)
        self.second_norm = _norm(width, rngs)
        self.shortcut = nnx.Sequential()
        if stride != 1 or width_in != width:
            projection = _convolution(width_in, width, 1, stride, rngs)
            self.shortcut = nnx.Sequential(projection, _norm(width, rngs))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Shape [batch, height, width, channels], by the stride smaller than the inputs."""
        hidden = jax.nn.relu(self.first_norm(self.first(inputs)))
        hidden = self.second_norm(self.second(hidden))
        return jax.nn.relu(hidden + self.shortcut(inputs))


class ResNet(nnx.Module):
    """A residual network with a 3x3 stem, and no pooling before its last layer."""

    def __init__(
        self, architecture: Architecture, channels: int, classes: int, *, rngs: nnx.Rngs
    ) -> None:
        width_in = architecture.widths[0]
        self.stem = _convolution(channels, width_in, 3, architecture.stem_stride, rngs)
        self.stem_norm = _norm(width_in, rngs)
        blocks = []
        for stage, width in enumerate(architecture.widths):
            for number in range(architecture.blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(ResidualBlock(width_in, width, stride, rngs=rngs))
                width_in = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(width_in, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, classes] for images [batch, height, width, channels]."""
        hidden = jax.nn.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean((1, 2)))


def resnet(architecture: Architecture, *, channels: int, classes: int) -> Network:
    """The pure functions of a residual network."""
    return network(lambda rngs: ResNet(architecture, channels, classes, rngs=rngs))


def _convolution(
    width_in: int, width: int, size: int, stride: int, rngs: nnx.Rngs
) -> nnx.Conv:
    # A padding of "SAME" would be lopsided under a stride of 2.
    return nnx.Conv(
        width_in, width, (size, size), strides=stride, padding=size // 2, use_bias=False,
        kernel_init=nnx.initializers.he_normal(), rngs=rngs,
    )  # fmt: skip


def _norm(width: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=MOMENTUM, rngs=rngs)
