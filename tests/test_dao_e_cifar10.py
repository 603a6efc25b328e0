"""DAO-E's published experiment: images, network, runs, claims and bad input."""

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

import benchmarks.lab.report as lab_report
from benchmarks import dao_e_cifar10
from benchmarks.dao_e_cifar10 import report
from benchmarks.lab import images, models, originals
from benchmarks.lab.models import RESNETS, Architecture, ResidualBlock, resnet
from benchmarks.lab.records import Key, Record, Records

TRAIN, HELD_OUT, TEST = 40, 20, 16


@pytest.fixture
def source(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A small data set of CIFAR-10's shape, and a network as small."""
    spec = originals.SPECS["cifar10"]._replace(validation=HELD_OUT)
    monkeypatch.setitem(originals.SPECS, "cifar10", spec)
    monkeypatch.setitem(RESNETS, "tiny", Architecture((4,), 0, stem_stride=2))
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # they take their time
    originals.save_arrays(arrays(), tmp_path / "data" / "cifar10.npz")
    return tmp_path / "data" / "cifar10.npz"


def arrays() -> originals.Arrays:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, TRAIN + HELD_OUT + TEST)
    levels = random.integers(0, 20, (len(labels), 32, 32, 3))
    pixels = (levels + 25 * labels[:, None, None, None]).astype(np.uint8)
    cut, labels = TRAIN + HELD_OUT, labels.astype(np.uint8)
    return originals.Arrays(pixels[:cut], labels[:cut], pixels[cut:], labels[cut:])


def test_images_are_standardised_by_the_training_set(source: pathlib.Path) -> None:
    found, whole = images.standardised("cifar10", source, 20), arrays()
    assert [len(found.train_labels), len(found.validation_labels)] == [20, 4]
    pixels = whole.train_images[:20].astype(float)
    for split, pictures in (
        (found.train_images, whole.train_images[:20]),
        (found.validation_images, whole.train_images[TRAIN : TRAIN + 4]),
        (found.test_images, whole.test_images),
    ):
        expected = (pictures - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
        np.testing.assert_allclose(split, expected, atol=1e-5)


def test_augmented_images_are_crops_and_half_of_them_are_mirrored() -> None:
    picture = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    seen = np.asarray(jax.jit(images.augment)(jax.random.key(0), np.stack([picture] * 400)))
    assert (seen.shape, seen.dtype) == ((400, 6, 5, 3), np.float32)
    padded = np.pad(picture, ((4, 4), (4, 4), (0, 0)))
    crops = [padded[r : r + 6, c : c + 5] for r in range(9) for c in range(9)]
    at = [divmod(number, 9) for number in range(81)]
    rows, columns = np.array(at).T
    np.testing.assert_array_equal(images.crop(jnp.stack([picture] * 81), rows, columns), crops)
    places = {cut.tobytes(): number for number, cut in enumerate(crops)}
    plain = [places.get(view.tobytes()) for view in seen]
    mirrored = [places.get(view.tobytes()) for view in seen[:, :, ::-1]]
    assert all(a is not None or b is not None for a, b in zip(plain, mirrored, strict=True))
    assert 150 < sum(place is not None for place in mirrored) < 250
    assert len({*plain, *mirrored}) > 70


def test_resnet18_has_the_published_parameters_and_float32_logits() -> None:
    net = resnet(RESNETS["resnet18"], channels=3, classes=10, bfloat16=True)
    params, moments = jax.eval_shape(net.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 11_173_962
    assert {leaf.dtype.name for leaf in jax.tree.leaves((params, moments))} == {"float32"}
    pictures = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    apply = functools.partial(net.apply, training=True)
    logits, after = jax.eval_shape(apply, params, moments, pictures)
    assert (logits.shape, logits.dtype) == ((2, 10), jnp.float32)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, moments)
    text = jax.jit(apply).lower(params, moments, pictures).as_text("hlo")
    assert "bf16[2,32,32,64]" in text  # the activations


def test_a_block_adds_to_its_shortcut() -> None:
    pictures = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    for width, stride in ((3, 1), (5, 2)):
        make = functools.partial(ResidualBlock, 3, width, stride, jnp.float32)
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
    line = f"--model tiny --data {source} --batch-size 16 --epochs 2 --out {tmp_path / 'out'}"
    line = f"dao_e_cifar10 {line} --augmented --optimizers dao_e"
    assert call(monkeypatch, line) == 0
    (run,) = Records(tmp_path / "out")
    assert run.key == Key("cifar10-tiny-all-b16-e2-r0.001", "dao_e", report.AUGMENTED, seed=0)
    curves = run.result["curves"]
    assert curves["validation_accuracy"][-1] == run.result["validation_accuracy"]
    weights = {
        name: values for name, values in curves.items() if name.split("/")[0] in report.EXPERTS
    }
    assert all(len(values) == 2 for values in curves.values())
    np.testing.assert_allclose(
        sum(np.array(curves[name]) for name in report.EXPERTS), 1, atol=1e-3
    )
    leaves = [values for name, values in weights.items() if name.startswith("adam/")]
    np.testing.assert_allclose(np.mean(leaves, axis=0), curves["adam"], atol=1e-3)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| DAO-E, crop, flip, cosine rate: Lion |" in text
    assert "not the setting of the bar of 95.0 %" in text
    rate = dao_e_cifar10.task_of(
        dao_e_cifar10.Plan(
            model="tiny", epochs=5, batch_size=16, augmented=True, source=source
        )
    ).schedule(0.1, 10)
    assert callable(rate)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10))
    np.testing.assert_allclose([rate(step) for step in range(11)], expected, atol=1e-8)


def test_the_committed_records_give_the_committed_tables(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_reported("dao_e_cifar10", tmp_path, monkeypatch)


def record(
    score: float, adam: Any = (0.25,) * 3, sgd: Any = (0.25,) * 3, **config: Any
) -> Record:
    """Weights of twenty entries: the first tenth, what is between, and the last tenth."""
    rest = [(1 - a - s) / 2 for a, s in zip(adam, sgd, strict=True)]
    series = {"adam": adam, "sgd": sgd, "rmsprop": rest, "lion": rest}
    curves = {name: [v[0]] * 2 + [v[1]] * 16 + [v[2]] * 2 for name, v in series.items()}
    result = {"test_accuracy": score, "curves": curves}
    return Record(Key("", ""), report.FULL | config, result, "", {})


@pytest.mark.parametrize(
    ("adam", "sgd", "verdict"),
    [
        ([0.5, 0.1, 0.1], [0.1, 0.1, 0.6], "60.0 %: as DAO-E describes."),
        ([0.5, 0.1, 0.1], [0.4, 0.9, 0.3], "but SGD does not grow."),
        ([0.1, 0.9, 0.1], [0.2, 0.2, 0.3], "SGD grows as in DAO-E, but Adam and RMSProp"),
        ([0.5, 0.1, 0.9], [0.0, 0.9, 0.1], "SGD grows as in DAO-E, but Adam and RMSProp"),
        ([0.1, 0.1, 0.8], [0.2, 0.9, 0.1], "not as DAO-E describes: SGD does not grow"),
    ],
)
def test_the_claim_about_the_weights_is_computed(
    adam: list[float], sgd: list[float], verdict: str
) -> None:
    said = report.claims_of({(report.CONSTANT, "dao_e"): [record(0.5, adam, sgd)] * 2})[-1]
    early, late = ((1 + adam[at] - sgd[at]) / 2 for at in (0, 2))
    assert f"together goes from {100 * early:.1f} to {100 * late:.1f} %" in said
    assert f"SGD's from {100 * sgd[0]:.1f} to {100 * sgd[2]:.1f} %" in said
    assert verdict in said


EXPERTS = {"sgd": [0.80, 0.82], "adam": [0.93], "rmsprop": [0.90, 0.92], "lion": [0.94, 0.92]}


@pytest.mark.parametrize(
    ("ours", "theirs", "config", "sentence"),
    [
        (
            [0.95, 0.93],
            EXPERTS,
            {},
            "test accuracy 94.00 ± 1.41 %; above SGD; above RMSProp; +1.00 points against the "
            "best expert, Adam (too few seeds for a standard error); above the bar of",
        ),
        (
            [0.91, 0.91],
            EXPERTS | {"adam": [0.5]},
            {},
            "above SGD; not above RMSProp; -2.00 points against the best expert, Lion, with a "
            "standard error of 1.00: below it; below the bar of 91.6 %.",
        ),
        (
            [0.94, 0.91],
            EXPERTS | {"adam": [0.5]},
            {"epochs": 30},
            "error of 1.80: not below it; not the setting of the bar of 91.6 %",
        ),
        ([0.8], {"sgd": [0.7]}, {}, "test accuracy 80.00 %; above SGD; below the bar"),
    ],
)
def test_the_claim_about_the_accuracy_is_computed(
    ours: list[float], theirs: dict[str, list[float]], config: dict[str, Any], sentence: str
) -> None:
    runs = {
        (report.CONSTANT, name): [record(score, **config) for score in scores]
        for name, scores in (theirs | {"dao_e": ours}).items()
    }
    assert sentence in report.claims_of(runs)[0]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--model resnet50", "model is 'resnet50'; choose from resnet18, resnet8, tiny."),
        ("--optimizers adam,adamax", "optimizers is 'adamax'; choose from sgd, adam"),
        ("--subset 41", "subset is 41, but cifar10 has 40 training images; pass a smaller"),
        ("--subset -1", "subset is -1; pass a whole number, or 0 for all images."),
        ("--batch-size 41", "batch-size is 41, but cifar10 has 40 training images"),
        ("--subset 10", "batch-size is 128, but cifar10 has 10 training images"),
        ("--epochs 0", "epochs is 0; pass a whole number above 0."),
        ("--learning-rate nan", "learning-rate is nan; pass a number above 0."),
    ],
)
def test_bad_input_is_one_sentence(
    line: str,
    sentence: str,
    source: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = f"dao_e_cifar10 --data {source} {line}"
    assert_refused(line, sentence, tmp_path / "out", monkeypatch, capsys)
