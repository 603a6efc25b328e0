"""The runner of studies: a whole study, resumption, records and reports."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
from commands import interrupt

import optabs
from benchmarks.lab import records, report, study, tasks
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.records import Key, Records
from benchmarks.lab.study import Grid, Study, run_units
from benchmarks.lab.training import Arm, cosine

STUDY = Study(  # what is tried and what is claimed
    name="tiny",
    doc="AdamABS beside Adam on a quadratic.",
    tasks={"quadratic": lambda source: tasks.quadratic()},
    arms={"adam": Arm("Adam", optabs.adam), "adam_abs": Arm("AdamABS", optabs.adam_abs)},
    bars=lambda kept: [report.Bar("runs", "4", str(len(kept.select(kind="run"))), None)],
    grid=Grid(-4, -2),
    module=__name__,
)


def units() -> list[study.Unit]:
    return STUDY.units(["quadratic"], list(STUDY.arms), seeds=2, steps=20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished study; read only."""
    kept = Records(tmp_path_factory.mktemp("tiny"))
    run_units(units(), kept)
    STUDY.report(kept)
    return kept.folder


@pytest.mark.slow
def test_a_study_makes_its_records_and_report(folder: pathlib.Path) -> None:
    kept = Records(folder)
    assert len(kept) == 2 * (1 + 2)
    for arm in STUDY.arms:
        (tuning,) = kept.select(kind="tuning", arm=arm)
        runs = kept.select(kind="run", arm=arm)
        assert [run.key.seed for run in runs] == [0, 1]
        assert {run.result["rate"] for run in runs} == {tuning.result["best"]}
        assert tuning.result["rates"][:3] == [0.01, 0.0316, 0.1]
        assert all(len(run.result["curves"]["loss"]) == 20 for run in runs)
    text = (folder / "README.md").read_text()
    assert "| AdamABS |" in text
    assert "| runs | 4 | 4 | - |" in text


@pytest.mark.slow
def test_a_finished_study_is_not_made_again_and_its_bytes_are_of_any_order(
    folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, content = Records(tmp_path), (folder / records.FILE).read_bytes()
    for record in reversed(list(Records(folder))):
        again.add(record)
    again.close()
    assert (tmp_path / records.FILE).read_bytes() == content
    made = interrupt(monkeypatch, study, "program_of", at=1)
    run_units(units(), Records(tmp_path))
    assert made == []
    assert (tmp_path / records.FILE).read_bytes() == content


@pytest.mark.slow
def test_ctrl_c_keeps_finished_runs_and_the_same_call_goes_on(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt(patched, study, "curves_of", at=2)
        with pytest.raises(study.Interrupted, match="finished runs are kept in"):
            run_units(units(), Records(tmp_path))
    kept = Records(tmp_path)
    assert {record.key for record in kept} == {
        Key("quadratic", "adam", kind="tuning"),
        Key("quadratic", "adam", seed=0),
    }
    tunings = interrupt(monkeypatch, study, "tuned", at=0)
    run_units(units(), kept)
    assert len(Records(tmp_path)) == 6
    assert len(tunings) == 1  # that of adam was kept


@pytest.mark.slow
def test_a_cut_line_is_left_out_and_mended_and_a_file_of_something_else_named(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole, kept, path = list(Records(folder)), Records(tmp_path), tmp_path / records.FILE
    for record in whole[:3]:
        kept.add(record)
    path.write_bytes(path.read_bytes()[:-20])
    mended = Records(tmp_path)
    assert len(mended) == 2
    mended.add(whole[2])
    assert list(Records(tmp_path)) == whole[:3]
    path.write_bytes(b"no gzip")
    with pytest.raises(records.StoreError, match="is no readable file of records"):
        Records(tmp_path)


@pytest.mark.parametrize(
    ("best", "tried"),
    [(-3, (-4, -2)), (0, (-4, 1)), (-6, (-7, -2)), (2, (-4, 3)), (9, (-4, 3))],
)
def test_the_grid_grows_while_the_best_rate_is_at_its_edge_but_not_for_ever(
    best: int, tried: tuple[int, int]
) -> None:
    def losses_of(rates: Sequence[float]) -> np.ndarray:
        return np.abs(np.log10(rates)[:, None] * 2 - best) * np.ones(3)

    found = study.tune(losses_of, Grid(-4, -2))
    assert found.rates == [study.half_decade(place) for place in range(tried[0], tried[1] + 1)]
    assert found.best == study.half_decade(min(best, tried[1]))


def test_two_calls_do_not_write_into_one_folder(tmp_path: pathlib.Path) -> None:
    first, second = Records(tmp_path), Records(tmp_path)
    record = records.record_of(Key("task", "arm"), {}, {"loss": 1.0})
    with first.locked():
        first.add(record)
        with pytest.raises(records.StoreError, match="another call writes into"):
            run_units([], second)
    run_units([], second)  # which knows what the first has written
    assert list(Records(tmp_path)) == list(second) == [record]


def test_tables_and_statistics() -> None:
    table = report.Table("Losses", ["arm", "loss"], [["Adam", "1"], ["SGD", "2"]])
    body = "| arm | loss |\n| --- | ---: |\n| Adam | 1 |\n| SGD | 2 |\n"
    assert table.markdown() == f"**Losses**\n\n{body}"
    assert report.mean_and_spread([1.0, 3.0]) == "2.00 ± 1.41"
    assert report.mean_and_spread([1.0], 1) == "1.0"
    assert report.mean_and_spread([]) == "-"
    own, other = np.array([4.0, 6.0]), np.array([1.0, 3.0])  # variances of 2, means of 5 and 2
    np.testing.assert_allclose(report.errors_above(own, other), 3 / np.sqrt(2))
    assert np.isnan(report.errors_above(own[:1], other))


@pytest.mark.slow
def test_settings_have_a_table_each_and_quick_runs_a_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"": lambda task: task, "cosine": lambda task: task._replace(schedule=cosine)}
    tried = STUDY._replace(rate=0.1, settings=settings, arms={"adam": STUDY.arms["adam"]})
    monkeypatch.chdir(tmp_path)
    command = study.command_of(tried)
    command(quick=True)
    command(steps=20, seeds=1)
    for name, steps, seeds in (("tiny-quick", 40, 2), ("tiny", 20, 1)):
        kept = Records(tmp_path / "runs" / name)
        assert len(kept) == 2 * seeds
        text = (kept.folder / "README.md").read_text()
        for setting in ("", ", cosine"):
            assert f"noisy gradients{setting}, {steps} steps; {seeds} seeds" in text
        assert "| Adam | 0.1 | - |" in text
    command(steps=20, seeds=2, settings="cosine")
    seeds_of = {"": [0], "cosine": [0, 1]}
    kept = Records(tmp_path / "runs" / "tiny")
    for setting, seeds in seeds_of.items():
        assert [each.key.seed for each in kept.select(setting=setting)] == seeds
    with pytest.raises(ArgumentError, match="settings is 'linear'; choose from"):
        command(settings="linear")


def test_several_workers_make_the_same_records(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    kept = Records(tmp_path)
    run_units(units(), kept, workers=2)
    one, other = ([each[:3] for each in of] for of in (Records(folder), kept))
    assert one == other  # but for the dates


def test_what_is_piped_keeps_every_name_whole(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {f"a long name of row number {row}": row for row in range(2)}
    columns = {f"column {number}": number for number in range(12)}
    table = report.grid("Wide", "step", names, columns, lambda row, column: "10.0 (2.5)")
    report.write(tmp_path, "tables", [table])
    shown = capsys.readouterr().out
    assert all(name in shown for name in [*names, *columns])
