"""The paper's experiment with DAO-E: images, interruption, the report and bad input."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import store
from benchmarks.dao_e import images, paper
from benchmarks.dao_e.paper import run_paper
from benchmarks.dao_e.resnet import MODELS, Architecture, Learner, Program
from benchmarks.lab import data
from benchmarks.lab.arguments import ArgumentError
from benchmarks.runs import Device
from benchmarks.training import Split
from optabs.training.checkpoints import Checkpoints

TRAIN, HELD_OUT, TEST = 40, 20, 16


@pytest.fixture
def source(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A small data set of CIFAR-10's shape, and a network as small."""
    spec = data.SPECS["cifar10"]._replace(validation=HELD_OUT)
    monkeypatch.setitem(data.SPECS, "cifar10", spec)
    monkeypatch.setitem(MODELS, "tiny", Architecture((4,), 0, stem_stride=2))
    path = tmp_path / "data" / "cifar10.npz"
    data.save_arrays(arrays(), path)
    return path


def arrays() -> data.Arrays:
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, TRAIN + HELD_OUT + TEST)
    pixels = (
        random.integers(0, 20, (len(labels), 32, 32, 3)) + 25 * labels[:, None, None, None]
    )
    pixels, labels = pixels.astype(np.uint8), labels.astype(np.uint8)
    cut = TRAIN + HELD_OUT
    return data.Arrays(pixels[:cut], labels[:cut], pixels[cut:], labels[cut:])


def call(source: pathlib.Path | None, out: pathlib.Path, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "dataset": "cifar10",
        "model": "tiny",
        "data": source,
        "regime": "a",
        "optimizers": ["adam"],
        "learning_rate": 1e-2,
        "epochs": 3,
        "batch_size": 16,
        "seeds": 1,
        "subset": 0,
        "bfloat16": False,
        "minutes": 0.0,
        "out": out,
    }
    run_paper(**(arguments | changes))


def results_of(out: pathlib.Path, name: str) -> dict[str, Any]:
    (path,) = out.rglob(name)
    return {
        key: value
        for key, value in json.loads(path.read_text())["results"].items()
        if key != "seconds"
    }


def test_images_are_standardised_by_the_training_set(source: pathlib.Path) -> None:
    device, classes = images.load_images("cifar10", source, 20)
    assert classes == 10
    counts = [split.labels.shape[0] for split in device]
    assert counts == [20, 4, TEST]
    np.testing.assert_allclose(device.train.images.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(device.train.images.std((0, 1, 2)), 1, rtol=1e-4)
    whole = arrays()
    pixels = whole.train_images[:20].astype(float)
    for split, originals in (
        (device.train, whole.train_images[:20]),
        (device.validation, whole.train_images[TRAIN : TRAIN + 4]),
        (device.test, whole.test_images),
    ):
        expected = (originals - pixels.mean((0, 1, 2))) / pixels.std((0, 1, 2))
        np.testing.assert_allclose(split.images, expected, atol=1e-5)


def test_parts_in_a_folder_are_joined(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    whole = arrays()
    for number, rows in enumerate((slice(0, 30), slice(30, None))):
        part = data.Arrays(
            *(array[rows] for array in whole[:2]),
            *(array[slice(0, 9) if number == 0 else slice(9, None)] for array in whole[2:]),
        )
        data.save_arrays(part, tmp_path / "parts" / f"cifar10-{number}.npz")
    joined, _ = images.load_images("cifar10", tmp_path / "parts", 0)
    alone, _ = images.load_images("cifar10", source, 0)
    jax.tree.map(np.testing.assert_array_equal, joined, alone)


def test_the_rate_of_regime_b_ends_near_0() -> None:
    run = paper.Run("cifar10", "tiny", "b", "adam", 0, 0.1, 5, 16, 0, False)
    rate = run.rate(40)  # two batches, five epochs
    assert callable(rate)
    sizes = [float(rate(step)) for step in range(11)]
    np.testing.assert_allclose(
        sizes, 0.05 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-8
    )
    assert run._replace(regime="a").rate(40) == 0.1


def test_interrupted_and_resumed_is_uninterrupted_and_reported(
    source: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scored = spying_on_the_test_set(monkeypatch)
    arguments: dict[str, Any] = {"optimizers": ["dao_e"], "regime": "b"}
    with monkeypatch.context() as patch:
        patch.setattr(paper, "show", lambda *_: None)  # pictures take their time
        call(source, tmp_path / "whole", **arguments)
        assert len(scored) == 1
        for calls in range(1, 4):
            capsys.readouterr()
            call(source, tmp_path / "parts", **arguments, minutes=1e-9)
            assert ("Out of time: 1 of 1 runs" in capsys.readouterr().out) == (calls < 3)
            assert len(scored) == 1 + (calls == 3)
    jax.tree.map(np.testing.assert_array_equal, *scored)
    whole, parts = (results_of(tmp_path / at, "b-dao_e-s0.json") for at in ("whole", "parts"))
    assert whole == parts
    assert not list((tmp_path / "parts").rglob("step_*"))
    assert len(whole["loss"]) == len(whole["multiplier"]) == 3
    assert len(whole["mixing"]["adam"]) == 3 * 2  # as many pieces as an epoch has batches
    for at in range(6):
        total = sum(weights[at] for weights in whole["mixing"].values())
        assert total == pytest.approx(1, abs=1e-3)
    leaves = whole["leaf_mixing"]["adam"]
    assert len(leaves["stem/kernel"]) == 3
    mean = np.mean([leaf[1] for leaf in leaves.values()])
    np.testing.assert_allclose(mean, np.mean(whole["mixing"]["adam"][2:4]), atol=1e-3)

    assert_reported(source, tmp_path / "parts", monkeypatch)


def spying_on_the_test_set(monkeypatch: pytest.MonkeyPatch) -> list[Learner]:
    """Records every learner that is scored on the test set, and compiles each rule once."""
    scored: list[Learner] = []
    programs: dict[paper.Run, Program] = {}
    build = paper.Run.program

    def program(self: paper.Run, device: Device, classes: int) -> Program:
        if self not in programs:
            programs[self] = build(self, device, classes)
        compiled = programs[self]

        def accuracy(learner: Learner, split: Split) -> float:
            if split.labels.shape[0] == TEST:
                scored.append(jax.device_get(learner))
            return compiled.accuracy(learner, split)

        def start(seed: Any) -> Learner:
            # Placed as restored arrays are, for which the epoch would compile anew.
            return jax.device_put(compiled.start(seed), jax.devices()[0])

        return compiled._replace(accuracy=accuracy, start=start)

    monkeypatch.setattr(paper.Run, "program", program)
    return scored


def assert_reported(
    source: pathlib.Path, out: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both regimes are in the report, and what is finished is not trained again."""

    def trained_again(*_: Any) -> Any:
        raise AssertionError("a finished run was trained again")

    with monkeypatch.context() as patch:
        patch.setattr(paper, "show", lambda *_: None)
        call(source, out, optimizers=["sgd"], seeds=2)
    (setting,) = (path.name for path in (out / "runs").iterdir())
    monkeypatch.setattr(paper, "_train", trained_again)
    call(source, out, optimizers=["sgd"], seeds=2)
    text = (out / f"{setting}.md").read_text()
    for words in (
        "constant rate: test",
        "| SGD | ",
        "crop, flip, cosine rate: test",
        "| DAO-E, crop, flip, cosine rate: Lion |",
        "- DAO-E, crop, flip, cosine rate: from the first to the last tenth",
        "not the setting of the bar of 95.0 %",
    ):
        assert words in text
    assert {path.name for path in out.glob("*.png")} == {
        f"{setting}-{kind}.png" for kind in ("accuracy", "weights", "layers")
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": "resnet50"}, "model is 'resnet50'; choose from resnet18, resnet8, tiny."),
        ({"regime": "c"}, "regime is 'c'; choose from a, b."),
        ({"optimizers": ["adam", "adamax"]}, "optimizers is 'adamax'; choose from sgd, adam"),
        ({"subset": 41}, "subset is 41, but cifar10 has 40 training images; pass a smaller"),
        ({"subset": -1}, "subset is -1; pass a whole number, or 0 for all images."),
        ({"batch_size": 41}, "batch-size is 41, but cifar10 has 40 training images"),
        ({"subset": 10}, "batch-size is 16, but cifar10 has 10 training images"),
        ({"epochs": 0}, "epochs is 0; pass a whole number above 0."),
        ({"learning_rate": float("nan")}, "learning-rate is nan; pass a number above 0."),
        ({"minutes": -1.0}, "minutes is -1; pass a number, or 0 for no limit."),
    ],
)
def test_bad_input_is_one_sentence(
    changes: dict[str, Any], sentence: str, source: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ArgumentError) as refused:
        call(source, tmp_path / "out", **changes)
    assert sentence in str(refused.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_checkpoint_of_another_run_is_refused(
    source: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = paper.Run("cifar10", "tiny", "a", "sgd", 0, 1e-2, 3, 16, 0, False)
    path = run.path(tmp_path)
    folder = tmp_path / "checkpoints" / path.parent.name / path.stem
    Checkpoints(folder, run.config()).save(1, {"bias": jnp.zeros(4)}, {})
    monkeypatch.setitem(MODELS, "tiny", Architecture((5,), 0))
    begun = Learner({"bias": jnp.zeros(5)}, {}, ())
    monkeypatch.setattr(
        paper, "make_program", lambda *_, **options: Program(lambda seed: begun, None, None)
    )
    with pytest.raises(store.StoreError, match="holds a run with another architecture; pass"):
        call(source, tmp_path, optimizers=["sgd"])
