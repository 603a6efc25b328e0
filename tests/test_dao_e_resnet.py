"""The paper's experiment with DAO-E: its network, augmentation, and epochs of training."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dao_e_problem import drawn
from flax import nnx

import optabs
from benchmarks.arrays import resnet18_shapes
from benchmarks.dao_e import images, paper
from benchmarks.dao_e.resnet import (
    MODELS,
    Architecture,
    Block,
    Learner,
    Program,
    make_program,
    resnet,
)
from benchmarks.training import Split

NET = resnet(Architecture((4,), 0, stem_stride=2), channels=3, classes=10)
TRAINING, TEST = 40, 16


def split(examples: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, examples)
    pixels = random.normal(size=(examples, 8, 8, 3)) + labels[:, None, None, None] - 4.5
    return Split(jnp.asarray(pixels, jnp.float32), jnp.asarray(labels))


def start_of(optimizer: Any) -> Learner:
    params, moments = map(drawn, jax.eval_shape(NET.init, jax.random.key(0)))
    moments = jax.tree.map(jnp.abs, moments)
    return Learner(params, moments, optimizer.init(params))


def test_resnet18_has_the_parameters_of_the_paper() -> None:
    net = resnet(MODELS["resnet18"], channels=3, classes=10, bfloat16=True)
    params, moments = jax.eval_shape(net.init, jax.random.key(0))
    shapes = collections.Counter(leaf.shape for leaf in jax.tree.leaves(params))
    assert shapes == collections.Counter(resnet18_shapes())
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, moments))} == {"float32"}
    pictures = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, after = jax.eval_shape(
        lambda *given: net.apply(*given, training=True), params, moments, pictures
    )
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), moments
    )


def test_a_block_adds_to_its_shortcut() -> None:
    pictures = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    found = []
    for width, stride in ((3, 1), (5, 2)):
        shapes = nnx.eval_shape(
            lambda width=width, stride=stride: Block(
                3, width, stride, jnp.float32, rngs=nnx.Rngs(1)
            )
        )
        block = nnx.merge(nnx.graphdef(shapes), drawn(nnx.state(shapes)))
        block.second_norm.scale[...] = jnp.zeros(width)
        block.second_norm.bias[...] = jnp.zeros(width)

        @nnx.jit
        def halves(block: Any) -> Any:
            return block(pictures), jax.nn.relu(block.shortcut(pictures))

        found.append(halves(block))
    for blocked, alone in found:
        np.testing.assert_allclose(blocked, alone, atol=1e-6)
    np.testing.assert_array_equal(found[0][1], jax.nn.relu(pictures))
    assert found[1][0].shape == (2, 2, 2, 5)


def test_bfloat16_is_an_option_of_the_activations() -> None:
    pictures = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32)
    nets = [
        resnet(Architecture((4,), 1), channels=3, classes=10, bfloat16=flag)
        for flag in (False, True)
    ]
    texts = []
    for net in nets:
        state = jax.eval_shape(net.init, jax.random.key(0))
        forward = jax.jit(functools.partial(net.apply, training=True))
        texts.append(forward.lower(*state, pictures).as_text("hlo"))
    assert ["bf16[4,8,8,4]" in text for text in texts] == [False, True]
    assert ["f32[4,8,8,4]{3,2,1,0} convolution" in text for text in texts] == [True, False]


def test_a_crop_is_what_numpy_cuts_out_of_the_padded_image() -> None:
    pictures = np.random.default_rng(0).normal(size=(9, 32, 32, 3)).astype(np.float32)
    rows, columns = np.arange(9), np.array([8, 0, 4, 1, 2, 3, 5, 6, 7])
    padded = np.pad(pictures, ((0, 0), (4, 4), (4, 4), (0, 0)))
    expected = np.stack(
        [
            padded[n, r : r + 32, c : c + 32]
            for n, (r, c) in enumerate(zip(rows, columns, strict=True))
        ]
    )
    np.testing.assert_array_equal(images.crop(pictures, rows, columns), expected)


def test_augmented_images_are_crops_and_half_of_them_are_mirrored() -> None:
    picture = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    seen = np.asarray(jax.jit(images.augment)(jax.random.key(0), np.stack([picture] * 400)))
    assert (seen.shape, seen.dtype) == ((400, 6, 5, 3), np.float32)
    padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[r : r + 6, c : c + 5] for r in range(9) for c in range(9)]
    places = [
        [number for number, cut in enumerate(crops) if np.array_equal(cut, view)]
        for view in (*seen, *seen[:, :, ::-1])
    ]
    plain, mirrored = places[:400], places[400:]
    assert all(a or b for a, b in zip(plain, mirrored, strict=True))
    assert 150 < sum(map(bool, mirrored)) < 250
    assert len({number for found in places for number in found}) > 70


def program_of(name: str, *, compiled_loop: bool) -> Program:
    return make_program(
        NET,
        paper.optimizer_of(name, 1e-2),
        batch_size=16,
        augment=images.augment,
        show=lambda state: paper.shown_of(paper.FORMS.get(name), state),
        compiled_loop=compiled_loop,
    )


def test_an_epoch_in_one_program_is_its_steps() -> None:
    ended = []
    for compiled_loop in (True, False):
        program = program_of("adam", compiled_loop=compiled_loop)
        start = start_of(paper.optimizer_of("adam", 1e-2))
        learner, shown = program.epoch(start, jax.random.key(1), split(TRAINING, 0))
        ended.append((learner.params, learner.moments, shown))
    for one, other in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_an_epoch_of_one_batch_is_one_step_by_hand() -> None:
    train, test = split(TRAINING, 0), split(TEST, 1)
    optimizer = optabs.sgd(0.1)
    program = make_program(NET, optimizer, batch_size=TRAINING, compiled_loop=False)
    start = start_of(optimizer)

    @functools.partial(jax.jit, static_argnums=3)
    def apply(params: Any, moments: Any, pictures: jax.Array, training: bool) -> Any:
        return NET.apply(params, moments, pictures, training=training)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, moments = apply(params, start.moments, train.images, True)
        return optabs.losses.softmax_cross_entropy(logits, train.labels).mean(), moments

    (loss, moments), grads = jax.jit(loss_fn)(start.params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start.params, grads)
    after, shown = program.epoch(start, jax.random.key(1), train)
    np.testing.assert_allclose(shown["loss"], [loss], rtol=1e-4)
    for one, other in ((after.params, expected), (after.moments, moments)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), one, other)
    logits, _ = apply(after.params, after.moments, test.images, False)
    share = np.mean(np.argmax(logits, -1) == test.labels)
    assert program.accuracy(after, test) == pytest.approx(share)


@pytest.mark.parametrize("name", paper.FORMS)
def test_an_epoch_of_a_mixture_keeps_every_shape(name: str) -> None:
    program = program_of(name, compiled_loop=True)
    learner = jax.eval_shape(program.start, 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    after, shown = jax.eval_shape(program.epoch, learner, key, split(TRAINING, 0))
    assert after == learner
    assert shown["mixing"]["lion"].shape == shown["multiplier"].shape == (2,)
    assert ("leaf_mixing" in shown) == (name == "dao_e")
