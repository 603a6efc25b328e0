"""DAO-E's published experiment: images, network, runs, bars and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_reported, call
from dao_e_problem import drawn
from flax import nnx

from benchmarks import dao_e_cifar10 as study
from benchmarks.lab import models, originals
from benchmarks.lab import report as lab_report
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.models import RESNETS, Architecture, ResidualBlock
from benchmarks.lab.records import Key, Record, Records


def arrays():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 255, (76, 32, 32, 3)).astype(np.uint8)
    labels = random.integers(0, 10, 76).astype(np.uint8)
    return originals.Arrays(pixels[:60], labels[:60], pixels[60:], labels[60:])


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A small data set of CIFAR-10's shape, and a task of a network as small."""
    spec = originals.SPECS["cifar10"]._replace(validation=20)
    monkeypatch.setitem(originals.SPECS, "cifar10", spec)
    monkeypatch.setitem(RESNETS, "tiny", Architecture((4,), 0, stem_stride=2))
    monkeypatch.setitem(study.SIZES, "tiny", ("tiny", 2, 0))
    tiny = {"tiny": functools.partial(study.task_of, "tiny", 2, 0)}
    settings = {study.AUGMENTED: study.augmented}
    command = study.command_of(study.STUDY._replace(tasks=tiny, settings=settings))
    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr(study, "BATCH", 16)
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # they take their time
    np.savez(tmp_path / "cifar10.npz", **arrays()._asdict())
    return tmp_path / "cifar10.npz"


def test_images_are_standardised_by_the_training_set(source):
    splits, whole = study.splits_of(source, 20), arrays()
    pixels = whole.train_images[:20].astype(float)
    held_out = whole.train_images[40:44]
    for split, pictures in zip(splits, (pixels, held_out, whole.test_images), strict=True):
        expected = (pictures - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
        np.testing.assert_allclose(split.inputs, expected, atol=1e-5)
        assert len(split.labels) == len(pictures)
    with pytest.raises(ArgumentError, match="data has 40 training images; pass at least 5000"):
        study.splits_of(source, 5000)


def test_augmented_images_are_crops_and_half_of_them_are_mirrored() -> None:
    picture = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    seen = np.asarray(jax.jit(study.augment)(jax.random.key(0), np.stack([picture] * 2000)))
    padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)))
    places = {padded[r : r + 6, c : c + 5].tobytes() for r in range(9) for c in range(9)}
    plain, mirrored = (
        [view.tobytes() in places and view.tobytes() for view in views]
        for views in (seen, seen[:, :, ::-1])
    )
    assert all(a or b for a, b in zip(plain, mirrored, strict=True))
    assert 900 < sum(map(bool, mirrored)) < 1100
    assert {*plain} - {False} == {*mirrored} - {False} == places


def test_a_block_adds_to_its_shortcut():
    pictures = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    for width, stride, wanted in ((3, 1, jax.nn.relu(pictures)), (5, 2, None)):
        make = functools.partial(ResidualBlock, 3, width, stride)
        shapes = nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(1)))
        block = nnx.merge(nnx.graphdef(shapes), drawn(nnx.state(shapes)))
        block.second_norm.scale[...] = block.second_norm.bias[...] = jnp.zeros(width)
        alone = jax.nn.relu(block.shortcut(pictures)) if wanted is None else wanted
        np.testing.assert_allclose(nnx.jit(lambda own: own(pictures))(block), alone, atol=1e-6)
    assert alone.shape == (2, 2, 2, 5)


@pytest.mark.slow
def test_a_run_through_the_command_line(source, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "PIECE", 9)
    line = f"dao_e_cifar10 --data {source} --tasks tiny --seeds 1 --arms dao_e"
    assert call(monkeypatch, f"{line} --out {tmp_path / 'out'}") == 0
    (run,) = Records(tmp_path / "out")
    assert run.key == Key("tiny", "dao_e", study.AUGMENTED, seed=0)
    curves = {name: np.array(values) for name, values in run.result["curves"].items()}
    assert curves["validation_accuracy"][-1] == run.result["validation_accuracy"]
    assert all(len(values) == 2 for values in curves.values())
    np.testing.assert_allclose(sum(curves[name] for name in study.EXPERTS), 1, atol=1e-3)
    leaves = [values for name, values in curves.items() if name.startswith("adam/")]
    np.testing.assert_allclose(np.mean(leaves, axis=0), curves["adam"], atol=1e-3)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| DAO-E, crop, flip, cosine rate: Lion |" in text
    rate = study.augmented(study.task_of("tiny", 5, 0, source)).schedule(0.1, 10)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10))
    np.testing.assert_allclose([rate(step) for step in range(11)], expected, atol=1e-8)


@pytest.mark.slow
def test_the_committed_records_give_the_committed_tables(source, tmp_path, monkeypatch):
    assert_reported("dao_e_cifar10", tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("ours", "adam", "sgd", "missed", "above"),
    [
        ([0.95, 0.93], [0.5, 0.1, 0.1], [0.1, 0.1, 0.6], [], "+1.00 points, +0.7"),
        ([0.91, 0.91], [0.5, 0.1, 0.1], [0.4, 0.9, 0.3], [1, 2, 3, 5], "-2.00 points, -2.0"),
        ([0.94, 0.91], [0.1, 0.9, 0.1], [0.2, 0.2, 0.3], [4], "-0.50 points, -0.3"),
        ([0.94, 0.91], [0.5, 0.1, 0.9], [0.0, 0.9, 0.1], [4], "-0.50 points, -0.3"),
        ([0.80, 0.80], [0.1, 0.1, 0.8], [0.2, 0.9, 0.1], [*range(6)], "-13.00 points, -13.0"),
    ],
)
def test_the_bars(ours, adam, sgd, missed, above):
    """Above SGD and RMSProp, not below the best expert, as high as it should be, weights."""
    rest = [(1 - a - s) / 2 for a, s in zip(adam, sgd, strict=True)]
    weights = {"adam": adam, "sgd": sgd, "rmsprop": rest, "lion": rest}
    # Of twenty points: the first tenth, what is between, and the last tenth.
    curves = {name: np.repeat(own, (2, 16, 2)) for name, own in weights.items()}
    scores = {"sgd": [0.8, 0.82], "adam": [0.5, 0.5], "rmsprop": [0.9, 0.92], "dao_e": ours}
    runs = {}
    for arm, own in (scores | {"lion": [0.94, 0.92]}).items():
        results = [{"test_accuracy": each, "curves": curves} for each in own]
        runs[study.CONSTANT, arm] = [Record(Key("", ""), {}, each, "", {}) for each in results]
    bars = study.bars_of(runs, published=True)
    assert [place for place, bar in enumerate(bars) if not bar.met] == missed
    mean, early, late = 100 * np.mean(ours), *((1 + adam[at] - sgd[at]) * 50 for at in (0, 2))
    assert [bar.measured for bar in bars] == [
        f"{mean - 81:+.2f}", f"{mean - 91:+.2f}", f"{above} standard errors",
        f"{mean:.2f} %", f"{early:.1f} to {late:.1f} %",
        f"{100 * sgd[0]:.1f} to {100 * sgd[2]:.1f} %",
    ]  # fmt: skip
    runs[study.CONSTANT, "adam"].pop()  # one seed is too few for a standard error
    assert study.bars_of(runs, published=True) == []
