"""DAO-E's published experiment: images, network, runs, bars and bad input."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_refused, assert_reported, call
from dao_e_problem import drawn
from flax import nnx

from benchmarks import dao_e_cifar10 as study
from benchmarks.lab import models, originals
from benchmarks.lab import report as lab_report
from benchmarks.lab.models import RESNETS, Architecture, ResidualBlock, resnet
from benchmarks.lab.records import Key, Record, Records

TRAIN, HELD_OUT, TEST = 40, 20, 16


@pytest.fixture
def source(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A small data set of CIFAR-10's shape, and a task of a network as small."""
    spec = originals.SPECS["cifar10"]._replace(validation=HELD_OUT)
    monkeypatch.setitem(originals.SPECS, "cifar10", spec)
    monkeypatch.setitem(RESNETS, "tiny", Architecture((4,), 0, stem_stride=2))
    monkeypatch.setitem(study.SIZES, "tiny", ("tiny", 2, 0))
    tasks = {"tiny": functools.partial(study.task_of, "tiny", 2, 0), **study.STUDY.tasks}
    command = study.command_of(study.STUDY._replace(tasks=tasks))
    monkeypatch.setattr(study, "command", command)
    monkeypatch.setattr(study, "BATCH", 16)
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # they take their time
    path = tmp_path / "data" / "cifar10.npz"
    path.parent.mkdir()
    np.savez(path, **arrays()._asdict())
    return path


def arrays() -> originals.Arrays:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, TRAIN + HELD_OUT + TEST)
    levels = random.integers(0, 20, (len(labels), 32, 32, 3))
    pixels = (levels + 25 * labels[:, None, None, None]).astype(np.uint8)
    cut, labels = TRAIN + HELD_OUT, labels.astype(np.uint8)
    return originals.Arrays(pixels[:cut], labels[:cut], pixels[cut:], labels[cut:])


def test_images_are_standardised_by_the_training_set(source: pathlib.Path) -> None:
    splits, whole = study.splits_of(source, 20), arrays()
    pixels = whole.train_images[:20].astype(float)
    held_out = whole.train_images[TRAIN : TRAIN + 4]
    for split, pictures in zip(splits, (pixels, held_out, whole.test_images), strict=True):
        expected = (pictures - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
        np.testing.assert_allclose(split.inputs, expected, atol=1e-5)
        assert len(split.labels) == len(pictures)


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


def test_resnet18_has_the_published_parameters_and_float32_logits() -> None:
    net = resnet(RESNETS["resnet18"], channels=3, classes=10)
    params, moments = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_173_962
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, moments))} == {"float32"}
    pictures = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    apply = functools.partial(net.apply, training=True)
    logits, after = jax.eval_shape(apply, params, moments, pictures)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, moments)


def test_a_block_adds_to_its_shortcut() -> None:
    pictures = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    for width, stride in ((3, 1), (5, 2)):
        make = functools.partial(ResidualBlock, 3, width, stride)
        shapes = nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(1)))
        block = nnx.merge(nnx.graphdef(shapes), drawn(nnx.state(shapes)))
        block.second_norm.scale[...] = block.second_norm.bias[...] = jnp.zeros(width)
        blocked, alone = nnx.jit(
            lambda block: (block(pictures), jax.nn.relu(block.shortcut(pictures)))
        )(block)
        np.testing.assert_allclose(blocked, alone, atol=1e-6)
        if stride == 1:
            np.testing.assert_array_equal(alone, jax.nn.relu(pictures))
    assert alone.shape == (2, 2, 2, 5)


def test_a_run_through_the_command_line(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "PIECE", 9)
    line = f"dao_e_cifar10 --data {source} --tasks tiny --seeds 1 --arms dao_e"
    assert call(monkeypatch, f"{line} --out {tmp_path / 'out'}") == 0
    plain, run = sorted(Records(tmp_path / "out"), key=lambda record: record.key.setting)
    assert run.key == Key("tiny", "dao_e", study.AUGMENTED, seed=0)
    assert plain.key.setting == study.CONSTANT
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


def test_the_committed_records_give_the_committed_tables(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reported("dao_e_cifar10", tmp_path, monkeypatch)


EXPERTS = {"sgd": [0.80, 0.82], "adam": [0.5], "rmsprop": [0.90, 0.92], "lion": [0.94, 0.92]}


def bars(
    ours: list[float], theirs: Any, adam: Any = (0,) * 3, sgd: Any = (0,) * 3, **of: bool
) -> dict[str, tuple[str, bool | None]]:
    """Of weights of twenty entries: the first tenth, what is between, and the last tenth."""
    rest = [(1 - a - s) / 2 for a, s in zip(adam, sgd, strict=True)]
    series = {"adam": adam, "sgd": sgd, "rmsprop": rest, "lion": rest}
    curves = {name: [v[0]] * 2 + [v[1]] * 16 + [v[2]] * 2 for name, v in series.items()}
    runs = {
        (study.CONSTANT, arm): [
            Record(Key("", ""), {}, {"test_accuracy": score, "curves": curves}, "", {})
            for score in scores
        ]
        for arm, scores in (theirs | {"dao_e": ours}).items()
    }
    found = study.bars_of(runs, published=of.get("published", True))
    return {bar.name.rpartition(": ")[2]: (bar.measured, bar.met) for bar in found}


@pytest.mark.parametrize(
    ("adam", "sgd", "leading", "growing"),
    [
        ([0.5, 0.1, 0.1], [0.1, 0.1, 0.6], True, True),
        ([0.5, 0.1, 0.1], [0.4, 0.9, 0.3], True, False),
        ([0.1, 0.9, 0.1], [0.2, 0.2, 0.3], False, True),
        ([0.5, 0.1, 0.9], [0.0, 0.9, 0.1], False, True),
        ([0.1, 0.1, 0.8], [0.2, 0.9, 0.1], False, False),
    ],
)
def test_the_bars_of_the_weights(
    adam: list[float], sgd: list[float], leading: bool, growing: bool
) -> None:
    found = bars([0.5, 0.5], EXPERTS, adam, sgd)
    early, late = (100 * (1 + adam[at] - sgd[at]) / 2 for at in (0, 2))
    assert found["weight of Adam and RMSProp"] == (f"{early:.1f} to {late:.1f} %", leading)
    moved = f"{100 * sgd[0]:.1f} to {100 * sgd[2]:.1f} %"
    assert found["weight of SGD"] == (moved, growing)


def test_the_bars_of_the_accuracy() -> None:
    minus, best = "test accuracy minus", "test accuracy minus that of the best expert,"
    adam = EXPERTS | {"adam": [0.93], "lion": [0.92, 0.9]}
    found = bars([0.95, 0.93], adam)
    assert found[f"{minus} SGD's"] == ("+13.00", True)
    assert found[f"{minus} RMSProp's"] == ("+3.00", True)
    assert found[f"{best} Adam"] == ("+1.00 points", None)  # too few seeds for an error
    assert found["test accuracy"] == ("94.00 %", True)
    found = bars([0.91, 0.91], EXPERTS)
    assert found[f"{minus} RMSProp's"] == ("+0.00", False)
    assert found[f"{best} Lion"] == ("-2.00 points, -2.0 standard errors", False)
    assert found["test accuracy"] == ("91.00 %", False)
    found = bars([0.94, 0.91], EXPERTS, published=False)
    assert found[f"{best} Lion"] == ("-0.50 points, -0.3 standard errors", True)
    assert found["test accuracy"] == ("92.50 %", None)
    assert bars([0.8], {"sgd": [0.7]}) == {}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--arms adam,adamax", "arms is 'adamax'; choose from sgd, adam"),
        ("--tasks cifar10-resnet8-n5000-b128-e30-r0.001", "40 training images; pass at least"),
    ],
)
def test_bad_input_is_one_sentence(
    line: str, sentence: str, source: Any, tmp_path: Any, monkeypatch: Any, capsys: Any
) -> None:
    line = f"dao_e_cifar10 --data {source} {line}"
    assert_refused(line, sentence, tmp_path / "out", monkeypatch, capsys)
