"""DAO-E's published experiment: images, network, runs, bars and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import assert_reported, call
from dao_e_problem import drawn
from flax import nnx

from benchmarks import dao_e_cifar10 as runs
from benchmarks.dao_e_cifar10 import report, study
from benchmarks.lab import models, originals
from benchmarks.lab import records as records_of
from benchmarks.lab import report as lab_report
from benchmarks.lab import study as lab_study
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.models import RESNETS, Architecture, ResidualBlock
from benchmarks.lab.records import Key, Record, Records
from benchmarks.lab.study import Grid, command_of

SIZE = study.Size("tiny", 12, 2, 93.0)


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
    monkeypatch.setitem(study.SIZES, "tiny", SIZE)
    tiny = {"tiny": functools.partial(study.task_of, SIZE)}
    settings = dict.fromkeys((study.AUGMENTED, study.TUNED), study.augmented)
    command = command_of(runs.STUDY._replace(tasks=tiny, settings=settings))
    monkeypatch.setattr(runs, "command", command)
    monkeypatch.setattr(lab_report, "png", lambda figure: b"")  # they take their time
    np.savez(tmp_path / "cifar10.npz", **arrays()._asdict())
    return tmp_path / "cifar10.npz"


def test_images_are_standardised_by_the_training_set(source):
    splits, whole = study.splits_of(source), arrays()
    pixels = whole.train_images[:40].astype(float)
    held_out = whole.train_images[40:]
    for split, pictures in zip(splits, (pixels, held_out, whole.test_images), strict=True):
        expected = (pictures - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
        np.testing.assert_allclose(split.inputs, expected, atol=1e-5)
        assert len(split.labels) == len(pictures)
    with pytest.raises(ArgumentError, match="data has 40 training images; pass at least 42"):
        study.task_of(SIZE._replace(batch=14), source)


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
def test_runs_through_the_command_line(source, tmp_path, monkeypatch):
    """Experts run and are tuned; the mixture's experts have the rates that were found."""
    monkeypatch.setattr(models, "PIECE", 9)
    monkeypatch.setattr(runs, "START", Grid(-5, -3))
    monkeypatch.setattr(lab_study, "FURTHEST", 0)
    out = tmp_path / "out"
    line = f"dao_e_cifar10 --data {source} --seeds 1 --out {out}"
    assert call(monkeypatch, f"{line} --arms lion,dao_e") == 0
    records = Records(out)
    tunings = {each.key.arm: each.result for each in records.select(kind="tuning")}
    assert tunings.keys() == study.EXPERTS.keys()
    assert tunings["lion"]["rates"] == [0.00316, 0.01, 0.0316]
    tuned = {name: tuning["best"] for name, tuning in tunings.items()}
    same = dict.fromkeys(study.EXPERTS, study.RATE)
    for setting, rates in ((study.AUGMENTED, same), (study.TUNED, tuned)):
        keys = [Key("tiny", arm, setting, seed=0) for arm in ("lion", "dao_e")]
        (alone, run), kept = map(records.get, keys), len(records.select(setting=setting))
        assert kept == 2 + 4 * (setting == study.TUNED)
        assert (alone.result["rates"], run.result["rates"]) == (rates["lion"], rates)
        curves = {name: np.array(values) for name, values in run.result["curves"].items()}
        assert curves["validation_accuracy"][-1] == run.result["validation_accuracy"]
        assert all(len(values) == 2 * study.PARTS for values in curves.values())
        np.testing.assert_allclose(sum(curves[each] for each in rates), 1, atol=1e-3)
        leaves = [values for name, values in curves.items() if name.startswith("adam/")]
        np.testing.assert_allclose(np.mean(leaves, axis=0), curves["adam"], atol=1e-3)
    text = (out / "README.md").read_text()
    assert "tiny on cifar10, 2 epochs of 40 images: accuracy in percent" in text
    assert "| DAO-E, crop, flip, cosine rate: Lion |" in text
    assert f"| Lion, best {tuned['lion']:g} |" in text
    assert {path.stem for path in out.glob("*.png")} == {
        "accuracy-tiny", "weights-tiny", "layers-tiny"
    }  # fmt: skip
    before = (out / records_of.FILE).read_bytes()
    assert call(monkeypatch, f"{line} --arms dao_e") == 0  # nothing is left to run
    assert (out / records_of.FILE).read_bytes() == before


def test_the_rate_falls_with_a_cosine_under_crops_and_flips(source):
    task = study.task_of(SIZE, source)
    assert (task.schedule(0.1, 10), task.steps) == (0.1, 6)
    rate = study.augmented(task).schedule(0.1, 10)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10))
    np.testing.assert_allclose([rate(step) for step in range(11)], expected, atol=1e-8)


@pytest.mark.slow
def test_the_committed_records_give_the_committed_tables(source, tmp_path, monkeypatch):
    assert_reported("dao_e_cifar10", tmp_path, monkeypatch)


def found(setting, scores, weights):
    """Runs of all arms: accuracies, and curves of the mixture's weights by expert."""
    curves = {name: np.repeat(own, (2, 16, 2)) for name, own in weights.items()}
    results = {
        arm: [{"test_accuracy": each, "curves": curves} for each in own]
        for arm, own in scores.items()
    }
    return {
        (setting, arm): [Record(Key("", ""), {}, each, "", {}) for each in own]
        for arm, own in results.items()
    }


@pytest.mark.parametrize(
    ("ours", "missed", "above"),
    [
        ([0.95, 0.93], [], "+1.00 points, +0.7"),
        ([0.92, 0.93], [], "-0.50 points, -0.4"),
        ([0.91, 0.91], [2, 3], "-2.00 points, -2.0"),
        ([0.80, 0.80], [1, 2, 3], "-13.00 points, -13.0"),
    ],
)
def test_the_bars(ours, missed, above):
    """Experts good enough, and a mixture above SGD and RMSProp, not below the best expert."""
    scores = {"sgd": [0.8, 0.82], "adam": [0.5, 0.5], "rmsprop": [0.9, 0.92]}
    scores |= {"lion": [0.94, 0.92], "dao_e": ours}
    own = found(study.AUGMENTED, scores, {})
    bars = report.bars_of(own, SIZE)
    assert [place for place, bar in enumerate(bars) if not bar.met] == missed
    mean = 100 * np.mean(ours)
    assert [bar.measured for bar in bars] == [
        "93.00 %", f"{mean - 81:+.2f}", f"{mean - 91:+.2f}", f"{above} standard errors"
    ]  # fmt: skip
    assert report.bars_of(own, SIZE._replace(best=93.5))[0].met is False
    indication = {(study.CONSTANT, arm): each for (_, arm), each in own.items()}
    assert [bar.met for bar in report.bars_of(indication, SIZE)] == [None] * 3
    last = report.bars_of(indication, SIZE._replace(published=92.6))[-1]
    assert (last.measured, last.met) == (f"{mean:.2f} %", mean >= 92.6)
    own[study.AUGMENTED, "adam"].pop()  # one seed is too few for a standard error
    assert report.bars_of(own, SIZE) == []


@pytest.mark.parametrize(
    ("adam", "sgd", "said"),
    [
        ([0.5, 0.1, 0.1], [0.1, 0.1, 0.6],
         "from 70.0 to 25.0 %, so they lead early; SGD's goes from 10.0 to 60.0 %, so it "
         "gains and leads late. At the end SGD has most, 60.0 %."),
        ([0.1, 0.9, 0.7], [0.4, 0.2, 0.2],
         "from 35.0 to 75.0 %, so they do not lead early; SGD's goes from 40.0 to 20.0 %, so "
         "it loses and does not lead late. At the end Adam has most, 70.0 %."),
    ],
)  # fmt: skip
def test_sentences_say_who_leads_when(adam, sgd, said):
    rest = [(1 - a - s) / 2 for a, s in zip(adam, sgd, strict=True)]
    weights = {"adam": adam, "sgd": sgd, "rmsprop": rest, "lion": rest}
    (sentence,) = report.leads(found(study.TUNED, {"dao_e": [0.9, 0.9]}, weights))
    assert sentence.startswith(f"DAO-E, {study.TUNED}: ")
    assert said in sentence
