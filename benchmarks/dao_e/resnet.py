"""Residual networks for small images, and the program of one epoch of their training."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import ArrayLike

from benchmarks.lab.networks import Network, network
from benchmarks.training import Split

MOMENTUM = 0.9  # of the running moments; flax's 0.99 remembers more than a short run
CHUNK = 1000  # images scored at once


class Architecture(NamedTuple):
    """What distinguishes one network of the family from another."""

    widths: tuple[int, ...]  # channels of each stage
    blocks: int  # in each stage
    stem_stride: int = 1


MODELS = {
    "resnet18": Architecture((64, 128, 256, 512), 2),
    # For CPUs: stages of a quarter of the pixels take a fifth of the time.
    "resnet8": Architecture((16, 32, 64), 1, stem_stride=2),
}


class Block(nnx.Module):
    """Two 3x3 convolutions beside a shortcut, which is projected where the shape changes."""

    def __init__(
        self, width_in: int, width: int, stride: int, dtype: Any, *, rngs: nnx.Rngs
    ) -> None:
        self.first = _convolution(width_in, width, 3, stride, dtype, rngs)
        self.first_norm = _norm(width, dtype, rngs)
        self.second = _convolution(width, width, 3, 1, dtype, rngs)
        self.second_norm = _norm(width, dtype, rngs)
        self.shortcut = nnx.Sequential()
        if stride != 1 or width_in != width:
            projection = _convolution(width_in, width, 1, stride, dtype, rngs)
            self.shortcut = nnx.Sequential(projection, _norm(width, dtype, rngs))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Shape [batch, height, width, channels], by the stride smaller than the inputs."""
        hidden = jax.nn.relu(self.first_norm(self.first(inputs)))
        hidden = self.second_norm(self.second(hidden))
        return jax.nn.relu(hidden + self.shortcut(inputs))


class ResNet(nnx.Module):
    """A residual network with a 3x3 stem, and no pooling before its last layer.

    Args:
      architecture: its widths, depth and the stride of its stem.
      channels: of the images.
      classes: to tell apart.
      dtype: of the activations; parameters and running moments are float32.
      rngs: for the parameters.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        channels: int,
        classes: int,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        width_in = architecture.widths[0]
        self.stem = _convolution(channels, width_in, 3, architecture.stem_stride, dtype, rngs)
        self.stem_norm = _norm(width_in, dtype, rngs)
        blocks = []
        for stage, width in enumerate(architecture.widths):
            for number in range(architecture.blocks):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(Block(width_in, width, stride, dtype, rngs=rngs))
                width_in = width
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(width_in, classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Logits float32 [batch, classes] for images [batch, height, width, channels]."""
        hidden = jax.nn.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden.mean((1, 2), dtype=jnp.float32))


def resnet(
    architecture: Architecture, *, channels: int, classes: int, bfloat16: bool = False
) -> Network:
    """The pure functions of a residual network."""
    dtype = jnp.bfloat16 if bfloat16 else jnp.float32
    return network(
        lambda rngs: ResNet(
            architecture, channels=channels, classes=classes, dtype=dtype, rngs=rngs
        )
    )


class Learner(NamedTuple):
    """What training changes."""

    params: Any
    moments: Any  # the running ones of batch norm
    opt_state: Any


class Program(NamedTuple):
    """Compiled functions that share a network and an optimizer."""

    start: Callable[[ArrayLike], Learner]
    """seed -> learner."""
    epoch: Callable[[Learner, jax.Array, Split], tuple[Learner, dict[str, jax.Array]]]
    """learner (donated), key, training set -> learner, what each step showed."""
    accuracy: Callable[[Learner, Split], float]
    """learner, set -> share classified rightly by the running moments."""


def make_program(
    net: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    *,
    batch_size: int,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    show: Callable[[Any], dict[str, jax.Array]] = lambda state: {},
    compiled_loop: bool | None = None,
) -> Program:
    """Builds the functions of a training; each compiles at its first call.

    Args:
      net: the network.
      optimizer: is given the loss as `value` and the images as `batch`.
      batch_size: an epoch visits a fresh permutation of the training set in batches; what
        fills no batch is left out of that epoch.
      augment: from a key and images to other images of the same shape.
      show: from the optimizer's state after a step to what is worth keeping of it.
      compiled_loop: whether an epoch is one program, else a step is. None: one program,
        but on CPUs, where XLA's convolutions inside a loop take 40 times as long.
    """
    if compiled_loop is None:
        compiled_loop = jax.default_backend() != "cpu"

    def start(seed: ArrayLike) -> Learner:
        params, moments = net.init(jax.random.key(seed))
        return Learner(params, moments, optimizer.init(params))

    def loss_fn(
        params: Any, moments: Any, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, Any]:
        logits, moments = net.apply(params, moments, images, training=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), moments

    def step(
        learner: Learner, key: jax.Array, rows: jax.Array, train: Split
    ) -> tuple[Learner, dict[str, jax.Array]]:
        images, labels = train.images[rows], train.labels[rows]
        if augment is not None:
            images = augment(key, images)
        (loss, moments), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            learner.params, learner.moments, images, labels
        )
        updates, opt_state = optimizer.update(
            grads, learner.opt_state, learner.params, value=loss, batch=images
        )
        params = optax.apply_updates(learner.params, updates)
        return Learner(params, moments, opt_state), {"loss": loss} | show(opt_state)

    def plan(key: jax.Array, train: Split) -> tuple[jax.Array, jax.Array]:
        examples = train.labels.shape[0]
        batches = examples // batch_size
        order_key, step_key = jax.random.split(key)
        order = jax.random.permutation(order_key, examples)[: batches * batch_size]
        return jax.random.split(step_key, batches), order.reshape(batches, batch_size)

    def epoch(
        learner: Learner, key: jax.Array, train: Split
    ) -> tuple[Learner, dict[str, jax.Array]]:
        return jax.lax.scan(lambda at, x: step(at, *x, train), learner, plan(key, train))

    quick_step, quick_plan = jax.jit(step, donate_argnums=0), jax.jit(plan)

    def epoch_by_steps(
        learner: Learner, key: jax.Array, train: Split
    ) -> tuple[Learner, dict[str, jax.Array]]:
        shown = []
        for step_key, rows in zip(*quick_plan(key, train), strict=True):
            learner, seen = quick_step(learner, step_key, rows, train)
            shown.append(seen)
        return learner, jax.tree.map(lambda *values: jnp.stack(values), *shown)

    @jax.jit
    def hits(params: Any, moments: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits, _ = net.apply(params, moments, images, training=False)
        return jnp.sum(logits.argmax(-1) == labels)

    def accuracy(learner: Learner, split: Split) -> float:
        count = split.labels.shape[0]
        right = [
            hits(learner.params, learner.moments, *(x[at : at + CHUNK] for x in split))
            for at in range(0, count, CHUNK)
        ]
        return sum(map(int, right)) / count

    return Program(
        start=jax.jit(start),
        epoch=jax.jit(epoch, donate_argnums=0) if compiled_loop else epoch_by_steps,
        accuracy=accuracy,
    )


def _convolution(
    width_in: int, width: int, size: int, stride: int, dtype: Any, rngs: nnx.Rngs
) -> nnx.Conv:
    return nnx.Conv(
        width_in,
        width,
        (size, size),
        strides=stride,
        padding=size // 2,  # "SAME" would be lopsided under a stride of 2
        use_bias=False,
        kernel_init=nnx.initializers.he_normal(),
        dtype=dtype,
        rngs=rngs,
    )


def _norm(width: int, dtype: Any, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, momentum=MOMENTUM, dtype=dtype, rngs=rngs)
