"""What waits for a GPU: the parts that fit are run, and their data fit into an archive."""

import importlib
import importlib.util
import pathlib
import shlex
import signal
from typing import Any

import numpy as np
import pytest
import typer
from commands import assert_refused, call

from benchmarks.__main__ import commands
from benchmarks.accelerators import archive, parts
from benchmarks.accelerators.parts import PARTS, Part
from benchmarks.lab.arguments import some_of
from benchmarks.lab.data import arrays_of
from benchmarks.lab.originals import Arrays, DataError
from benchmarks.lab.records import Records
from benchmarks.timing import SUBJECTS, steps

HERE = {"platform": "gpu", "device": "a card", "jax": "0.11", "torch": False}


def _drawn(train: int, test: int, side: int, channels: int) -> Arrays:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (train + test, side, side, channels)).astype(np.uint8)
    labels = random.integers(0, 10, train + test).astype(np.uint8)
    return Arrays(pixels[:train], labels[:train], pixels[train:], labels[train:])


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder of small data sets."""
    folder = tmp_path / "given"
    folder.mkdir()
    for name, arrays in {
        "mnist": _drawn(9, 4, 28, 1),
        "cifar10": _drawn(50, 7, 32, 3),
    }.items():
        np.savez(folder / f"{name}.npz", **arrays._asdict())
    return folder


def test_an_archive_has_mnist_and_the_first_images_of_cifar10(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SHEET", (3, 4))  # the last sheet is not full
    monkeypatch.setattr(archive, "TRAIN", 40)
    path = tmp_path / "data.tar"
    assert call(monkeypatch, f"accelerators --archive {path} --data {data}") == 0
    folder = archive.unpacked(path, tmp_path / "unpacked")
    kept, given = arrays_of("mnist", folder), arrays_of("mnist", data)
    for ours, theirs in zip(kept, given, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kept, given = arrays_of("cifar10", folder), arrays_of("cifar10", data)
    np.testing.assert_array_equal(kept.train_labels, given.train_labels[:40])
    np.testing.assert_array_equal(kept.test_labels, given.test_labels)
    for ours, theirs in ((kept.train_images, given.train_images[:40]), (kept[2], given[2])):
        assert ours.shape == theirs.shape
        # Colours of 6 bits, black and white among them.
        assert np.abs(ours.astype(int) - theirs).max() == 3
        assert (ours.min(), ours.max()) == (0, 255)
    assert archive.unpacked(folder, tmp_path) == folder


def test_what_is_no_archive_or_too_large_is_said_in_one_sentence(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(DataError, match=r"cannot be read .*; pass an archive"):
        archive.unpacked(data / "mnist.npz", tmp_path)
    monkeypatch.setattr(archive, "LIMIT", 1000)
    with pytest.raises(DataError, match="bytes, and 1000 may be carried; pass"):
        archive.write(tmp_path / "data.tar", data)
    assert not (tmp_path / "data.tar").exists()


@pytest.mark.parametrize(
    ("needed", "waiting", "left", "limit"),
    [
        (50, [], 49, 0),
        (50, [], 80, 80),
        (50, [60, 20], 80, 60),  # the first of those that wait does not fit
        (50, [60, 20], 110, 60 - 10),
        (50, [60, 20], 135, 50 + 5),
        (50, [10], 50, 50),
    ],
)
def test_a_part_may_take_what_those_after_it_leave_over(
    needed: float, waiting: list[float], left: float, limit: float
) -> None:
    assert parts.limit_of(needed, waiting, left) == limit


def test_nine_minutes_are_enough_for_all_that_is_asked_for() -> None:
    wanted = ["steps_8bit", "steps_bfloat16", "mnist_256", "resnet18", "dao_e", "population"]
    assert list(PARTS)[: len(wanted)] == wanted
    started = 15.0  # to find the device and to unpack the data
    needed = sum(PARTS[name].seconds for name in wanted)
    assert needed + parts.RESERVED + started <= 9 * 60


@pytest.mark.parametrize("toy", [False, True], ids=["whole", "toy"])
@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_a_command_that_there_is(name: str, toy: bool) -> None:
    """Its options are known, and so are the names that it passes."""
    part = PARTS[name]
    if toy and not part.toy:
        return
    study, *words = shlex.split(part.toy if toy else part.line)
    assert study in commands()
    module = importlib.import_module(f"benchmarks.{study}")
    app = typer.Typer()
    app.command()(module.command)
    given: dict[str, Any] = typer.main.get_command(app).make_context("", words).params
    if study == "timing":
        assert given["subject"] in SUBJECTS
        some_of(given["sizes"], "sizes", steps.SIZES.get(given["subject"], ()))
        some_of(given["optimizers"], "optimizers", steps.OURS)
        assert part.data == ("mnist" if given["subject"] == "epoch" else "")
        return
    for names, known in (("tasks", module.STUDY.tasks), ("arms", module.STUDY.arms)):
        some_of(given[names], names, known)
    some_of(given["settings"], "settings", module.STUDY.settings, separator=";")
    assert part.data in given["tasks"]
    assert given["seeds"] >= 1


def _runs(monkeypatch: pytest.MonkeyPatch, scripts: dict[str, tuple[float, str]]) -> None:
    """Parts that are scripts, of so many seconds each; one named data needs images."""
    made = {
        name: Part(f"it is {name}", seconds, "", script, "mnist" if name == "data" else "")
        for name, (seconds, script) in scripts.items()
    }
    monkeypatch.setattr(parts, "PARTS", made)
    monkeypatch.setattr(parts, "probe", lambda: HERE)
    monkeypatch.setattr(parts, "GRACE", 0.0)
    monkeypatch.setattr(parts, "command_of", lambda part, *_: ["-c", part.toy])


def test_parts_that_fit_are_run_and_the_others_are_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = {
        "fails": (1.0, "raise SystemExit(3)"),
        "data": (1.0, "raise SystemExit('it has none')"),
        "long": (999.0, "raise SystemExit('there is no time')"),
        "ends": (1.0, "print('done')"),
    }
    _runs(monkeypatch, scripts)
    minutes = (parts.RESERVED + 60.0) / 60
    assert call(monkeypatch, f"accelerators --run --minutes {minutes} --out {tmp_path}") == 0
    text = (tmp_path / "README.md").read_text()
    assert "run on a card\n" in text
    for name, state in {
        "fails": "failed with exit code 3",
        "data": "left out: needs the images of mnist; pass --data",
        "long": "left out: it needs 999 s, fewer were left",
        "ends": "whole",
    }.items():
        assert f"| {name} | it is {name} | {state}" in text


@pytest.mark.slow
def test_a_part_that_takes_too_long_is_told_to_end_and_then_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "GRACE", 3.0)
    saved = tmp_path / "saved"
    waits = "import time\ntry: time.sleep(99)\nfinally: {}"
    # As a shell starts what it has in the background.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for last in (f"open({str(saved)!r}, 'w')", "time.sleep(99)"):
            outcome = parts.call(["-S", "-c", waits.format(last)], 8)
            assert outcome.state == "stopped at its limit of 8 s; what was finished is kept"
            assert outcome.seconds is not None
            assert 5 <= outcome.seconds < 60
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    assert saved.exists()


def test_ctrl_c_ends_the_part_and_keeps_what_was_finished(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runs(monkeypatch, {"ends": (1.0, "print('done')"), "endless": (1.0, "")})
    whole, calls = parts.call, []

    def interrupted(command: Any, limit: float) -> Any:
        calls.append(command)
        if len(calls) == 2:
            raise parts.Interrupted("Stopped; what was finished is kept.")
        return whole(command, limit)

    monkeypatch.setattr(parts, "call", interrupted)
    assert call(monkeypatch, f"accelerators --run --out {tmp_path}") == 130
    assert "| ends | it is ends | whole |" in (tmp_path / "README.md").read_text()


def test_a_machine_on_which_jax_finds_nothing_is_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "PROBE", "raise RuntimeError('no device at all')")
    sentence = "JAX finds no device (RuntimeError: no device at all); set JAX_PLATFORMS=cpu."
    assert_refused("accelerators --run", sentence, tmp_path, monkeypatch, capsys)
    monkeypatch.undo()
    found = parts.probe()
    assert (found["platform"], found["torch"]) == (
        "cpu",
        bool(importlib.util.find_spec("torch")),
    )
    assert parts.left_out("epoch", tmp_path, HERE) == "left out: PyTorch is not installed"
    assert parts.left_out("dao_e_resnet18", None, HERE) == ""
    assert parts.left_out("dao_e_resnet18", None, found) == "left out: it has no toy size"


@pytest.mark.slow
def test_a_part_runs_at_toy_sizes_and_its_speeds_are_shown(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PARTS", {"steps_8bit": PARTS["steps_8bit"]})
    assert call(monkeypatch, f"accelerators --run --out {tmp_path}") == 0
    (record,) = Records(tmp_path / "timing")
    assert record.key.task == "1e4"
    text = (tmp_path / "README.md").read_text()
    assert "run on this CPU, at toy sizes: no GPU was found" in text
    assert "| whole |" in text
    for side in record.result["call"]["seconds"]:
        assert f"| 1e4, adamw_abs, 8bit, {side} |" in text
