"""The paper's experiment with DAO-E: network, images, resumption, claims and bad input."""

import collections
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import optabs
from benchmarks import data, store
from benchmarks.arguments import ArgumentError
from benchmarks.dao_e import images, paper, paper_report
from benchmarks.dao_e.paper import run_paper
from benchmarks.dao_e.resnet import (
    MODELS,
    Architecture,
    Block,
    Learner,
    Program,
    make_program,
    resnet,
)
from benchmarks.runs import Device
from benchmarks.timing import resnet18_shapes
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
    pictures = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))

    @jax.jit
    def halves() -> list[tuple[jax.Array, jax.Array]]:
        found = []
        for width, stride in ((3, 1), (5, 2)):
            block = Block(3, width, stride, jnp.float32, rngs=nnx.Rngs(1))
            block.second_norm.scale[...] = jnp.zeros(width)
            found.append((block(pictures), jax.nn.relu(block.shortcut(pictures))))
        return found

    for blocked, alone in (pairs := halves()):
        np.testing.assert_allclose(blocked, alone, atol=1e-6)
    np.testing.assert_array_equal(pairs[0][1], jax.nn.relu(pictures))
    assert pairs[1][0].shape == (2, 2, 2, 5)


def test_bfloat16_is_an_option_of_the_activations() -> None:
    pictures = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
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


def program_of(name: str, *, compiled_loop: bool) -> Program:
    return make_program(
        resnet(MODELS["tiny"], channels=3, classes=10),
        paper.optimizer_of(name, 1e-2),
        batch_size=16,
        augment=images.augment,
        show=lambda state: paper.shown_of(paper.CONTROLLERS.get(name), state),
        compiled_loop=compiled_loop,
    )


def test_an_epoch_in_one_program_is_its_steps(source: pathlib.Path) -> None:
    device, _ = images.load_images("cifar10", source, 0)
    ended = []
    for compiled_loop in (True, False):
        program = program_of("adam", compiled_loop=compiled_loop)
        learner, shown = program.epoch(program.start(0), jax.random.key(1), device.train)
        ended.append((learner.params, learner.moments, shown))
    for one, other in zip(*map(jax.tree.leaves, ended), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


def test_an_epoch_of_one_batch_is_one_step_by_hand(source: pathlib.Path) -> None:
    device, _ = images.load_images("cifar10", source, 0)
    net = resnet(MODELS["tiny"], channels=3, classes=10)
    optimizer = optabs.sgd(0.1)
    program = make_program(net, optimizer, batch_size=TRAIN, compiled_loop=False)
    start = program.start(0)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        logits, moments = net.apply(params, start.moments, device.train.images, training=True)
        losses = optabs.losses.softmax_cross_entropy(logits, device.train.labels)
        return losses.mean(), (logits, moments)

    (loss, (_, moments)), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
        start.params
    )
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, start.params, grads)
    after, shown = program.epoch(start, jax.random.key(1), device.train)
    np.testing.assert_allclose(shown["loss"], [loss], rtol=1e-4)
    for one, other in ((after.params, expected), (after.moments, moments)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), one, other)
    logits, _ = net.apply(after.params, after.moments, device.test.images, training=False)
    share = np.mean(np.argmax(logits, -1) == device.test.labels)
    assert program.accuracy(after, device.test) == pytest.approx(share)


@pytest.mark.parametrize("name", paper.CONTROLLERS)
def test_an_epoch_of_a_mixture_keeps_every_shape(name: str, source: pathlib.Path) -> None:
    device, _ = images.load_images("cifar10", source, 0)
    program = program_of(name, compiled_loop=True)
    learner = jax.eval_shape(program.start, 0)
    key = jax.eval_shape(lambda: jax.random.key(0))
    after, shown = jax.eval_shape(program.epoch, learner, key, device.train)
    assert after == learner
    assert shown["mixing"]["lion"].shape == shown["multiplier"].shape == (2,)
    assert ("leaf_mixing" in shown) == (name == "dao_e")


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

        return compiled._replace(accuracy=accuracy)

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


def record(score: float, weights: dict[str, list[float]], **config: Any) -> dict[str, Any]:
    return {
        "config": paper_report.PAPER_SETTING | config,
        "results": {"test_accuracy": score, "mixing": weights},
    }


def weights_of(adam: list[float], sgd: list[float]) -> dict[str, list[float]]:
    """Twenty entries: the first tenth, what is between, and the last tenth."""
    series = {"adam": adam, "sgd": sgd}
    series["rmsprop"] = [(1 - a - s) / 2 for a, s in zip(adam, sgd, strict=True)]
    series["lion"] = series["rmsprop"]
    return {name: [v[0]] * 2 + [v[1]] * 16 + [v[2]] * 2 for name, v in series.items()}


@pytest.mark.parametrize(
    ("adam", "sgd", "verdict"),
    [
        ([0.5, 0.1, 0.1], [0.1, 0.1, 0.6], "60.0 %: as the paper describes."),
        ([0.5, 0.1, 0.1], [0.4, 0.9, 0.3], "but SGD does not grow."),
        ([0.1, 0.9, 0.1], [0.2, 0.2, 0.3], "SGD grows as in the paper, but Adam and RMSProp"),
        ([0.5, 0.1, 0.9], [0.0, 0.9, 0.1], "SGD grows as in the paper, but Adam and RMSProp"),
        ([0.1, 0.1, 0.8], [0.2, 0.9, 0.1], "not as the paper describes: SGD does not grow"),
    ],
)
def test_the_claim_about_the_weights_is_computed(
    adam: list[float], sgd: list[float], verdict: str
) -> None:
    rows = [record(0.5, weights_of(adam, sgd))] * 2
    said = paper_report.claims_of({("a", "dao_e"): rows})[-1]
    early, late = ((1 + adam[at] - sgd[at]) / 2 for at in (0, 2))
    assert f"together goes from {100 * early:.1f} to {100 * late:.1f} %" in said
    assert f"SGD's from {100 * sgd[0]:.1f} to {100 * sgd[2]:.1f} %" in said
    assert verdict in said


EVEN = weights_of([0.25] * 3, [0.25] * 3)
EXPERTS = {"sgd": [0.80, 0.82], "adam": [0.93], "rmsprop": [0.90, 0.92], "lion": [0.94, 0.92]}


@pytest.mark.parametrize(
    ("ours", "theirs", "config", "sentences"),
    [
        (
            [0.95, 0.93],
            EXPERTS,
            {},
            [
                "test accuracy 94.00 ± 1.41 %; above SGD; above RMSProp; +1.00 points against "
                "the best expert, Adam (too few seeds for a standard error); above the bar of",
            ],
        ),
        (
            [0.91, 0.91],
            EXPERTS | {"adam": [0.5]},
            {},
            [
                "above SGD; not above RMSProp; -2.00 points against the best expert, Lion, "
                "with a standard error of 1.00: below it; below the bar of 91.6 %."
            ],
        ),
        (
            [0.94, 0.91],
            EXPERTS | {"adam": [0.5]},
            {"epochs": 30},
            ["error of 1.80: not below it; not the setting of the bar of 91.6 %"],
        ),
        ([0.8], {"sgd": [0.7]}, {}, ["test accuracy 80.00 %; above SGD; below the bar"]),
    ],
)
def test_the_claim_about_the_accuracy_is_computed(
    ours: list[float],
    theirs: dict[str, list[float]],
    config: dict[str, Any],
    sentences: list[str],
) -> None:
    runs = {
        ("a", name): [record(score, EVEN, **config) for score in scores]
        for name, scores in (theirs | {"dao_e": ours}).items()
    }
    said = paper_report.claims_of(runs)[0]
    for sentence in sentences:
        assert sentence in said


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
    with pytest.raises(store.StoreError, match="holds a run with another architecture; pass"):
        call(source, tmp_path, optimizers=["sgd"])
