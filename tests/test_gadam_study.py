"""The study of Gadam: what arms spend, its programs, its bars, and its command."""

import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import assert_refused, call

import optabs
from benchmarks import gadam
from benchmarks.gadam import program, report, tasks
from benchmarks.gadam.program import PEERS, Setting, program_of, search_of
from benchmarks.gadam.results import FLOOR, Results, bars_of
from benchmarks.gadam.tasks import Alone, Arm, Problem, Rule, Task, count_of, spent_at
from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.functions import FUNCTIONS
from benchmarks.lab.records import Key, Record, Records
from optabs import genetics

SMALL = Rule("rule", 2, 0.1, "unit")
RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "gadam"


@pytest.fixture(autouse=True)
def _ranks_of_evosax_are_promoted() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def counted() -> tuple[Task, dict[str, int]]:
    """A parabola that counts its evaluations, and what it has counted."""
    counts = {"gradients": 0, "judged": 0}

    def count(name: str) -> Any:
        def add(x: Any) -> None:
            counts[name] += 1

        return add

    @jax.custom_vjp
    def learned(x: jax.Array) -> jax.Array:
        return jnp.sum(x**2)

    def backward(x: jax.Array, slope: jax.Array) -> Any:
        jax.debug.callback(count("gradients"), x)
        return (2 * slope * x,)

    learned.defvjp(lambda x: (learned(x), x), backward)

    def judged(x: jax.Array, _: Any) -> jax.Array:
        jax.debug.callback(count("judged"), x)
        return jnp.sum(x**2)

    problem = Problem(
        lambda key: jax.random.normal(key, (2,)),
        lambda x, _: learned(x), None, None, judged, None, {"unit": genetics.uniform_like},
    )  # fmt: skip
    return Task("counted", 3, 8, 1, 1.0, lambda key: problem), counts


@pytest.mark.parametrize(
    "arm",
    [Alone("best"), Alone("restarts", 3), SMALL, SMALL._replace(label="once", relearn=False)],
    ids=lambda arm: arm.label,
)
def test_an_arm_spends_what_is_counted(monkeypatch: pytest.MonkeyPatch, arm: Arm) -> None:
    monkeypatch.setattr(program, "TOGETHER", 1)
    task, counts = counted()
    outcome = program_of(task, arm)([1e-2], [0])
    jax.effects_barrier()
    wanted = count_of(arm, task)
    assert counts == wanted._asdict()
    assert wanted.gradients <= task.units * task.epochs
    assert outcome.curve.shape[0] == 1
    looks = spent_at(arm, task, outcome.curve.shape[1])
    assert looks[-1] == wanted.gradients
    # What is spent between two looks; before the first one, those that learn once learn twice.
    assert looks[0] == {"rule": 12, "once": 12}.get(arm.label, 3)


@pytest.mark.parametrize("task", ["ackley-2-shifted", "breast_cancer"])
def test_no_arm_spends_more_gradients_than_the_best_of_g(task: str) -> None:
    arms, posed = tasks.arms_of(task), tasks.task_of(task)
    spent = {name: count_of(arm, posed).gradients for name, arm in arms.items()}
    most = posed.units * posed.epochs * posed.steps
    assert spent["best_of_g"] == most
    assert all(0.9 * most <= each <= most for each in spent.values())
    assert len({arm.label for arm in arms.values()}) == len(arms)


def test_the_best_of_g_is_what_optax_loops_give() -> None:
    task = tasks.function_task("ackley", 3, "shifted")._replace(units=4, epochs=10)
    rate = 1e-2
    (curve,) = program_of(task, Alone("best"))([rate], [5]).curve
    pose_key, run_key = jax.random.split(jax.random.key(5))
    problem, optimizer = task.pose(pose_key), optabs.adam(rate * task.scale)
    start_key = jax.random.split(run_key, 1)[0]
    starts = optabs.gadam(optimizer, task.units).init(start_key, problem.init_fn).params

    @jax.jit
    def step(x: jax.Array, state: Any) -> Any:
        slope = jax.grad(problem.loss_fn)(x, None)
        updates, state = optimizer.update(slope, state, x)
        x = optax.apply_updates(x, updates)
        return x, state, problem.judge(x, None)

    best = np.full(10, np.inf)
    for x in starts:
        state = optimizer.init(x)
        for number in range(10):
            x, state, loss = step(x, state)
            best[number] = min(best[number], float(loss))
    np.testing.assert_allclose(curve, np.minimum.accumulate(best), rtol=1e-3)


def test_a_population_improves_and_tells_its_lineage() -> None:
    task = tasks.function_task("rastrigin", 4, "rotated")._replace(units=6, epochs=40)
    arm = Rule("rule", 4, 0.1, "mixed", relearn=False)
    outcome = program_of(task, arm)([3e-3, 1e-2], [0, 1])
    assert outcome.curve.shape == (2, arm.generations(40))
    assert (np.diff(outcome.curve, axis=1) <= 0).all()
    assert outcome.lineage is not None
    assert outcome.lineage.parents.shape == (2, 9, 6, 2)
    assert (outcome.lineage.diversity > 0).all()
    for seed, params, loss in zip([0, 1], outcome.params, outcome.curve[:, -1], strict=True):
        problem = task.pose(jax.random.split(jax.random.key(seed))[0])
        np.testing.assert_allclose(problem.judge(params, None), loss, rtol=1e-4)


def test_a_draw_has_the_mean_and_the_spread_of_its_leaf() -> None:
    leaf = 3 + 2 * jax.random.normal(jax.random.key(0), (5000,))
    drawn = tasks.spread_like(jax.random.key(1), {"w": leaf, "b": jnp.zeros(3)})
    np.testing.assert_allclose([drawn["w"].mean(), drawn["w"].std()], [3, 2], rtol=0.05)
    np.testing.assert_array_equal(drawn["b"], jnp.zeros(3))


@pytest.mark.parametrize("lowered", [3, 4])
def test_bars_are_medians_ratios_and_standard_errors(
    tmp_path: pathlib.Path, lowered: int
) -> None:
    """Five functions, `lowered` of them lowered elevenfold, and a network 1.2 errors above."""
    kept = Records(tmp_path)

    def add(task: str, arm: str, *losses: float) -> None:
        for seed, loss in enumerate(losses):
            kept.add(Record(Key(task, arm, seed=seed), {}, {"loss": loss}, "", {}))
        kept.add(Record(Key(task, arm, kind="curves"), {}, {}, "", {}))

    for index, name in enumerate(FUNCTIONS):
        add(f"{name}-30-shifted", "best_of_g", 90.0, 100.0, 300.0)
        add(f"{name}-30-shifted", "tuned", 100.0 / (11 if index < lowered else 9), 1e-9, 1e9)
    add("digits", "best_of_g", 0.9, 1.0, 1.1)
    add("digits", "tuned", 1.0, 1.1, 1.2)
    add("ackley-30-shifted", "literal", 0.0, 0.0, -1e-6)
    found = Results(kept)
    functions, networks = bars_of(found, "tuned")
    assert functions.measured == f"{lowered} of 5"
    assert functions.met == (lowered == 4)
    # 0.1 over the root of 0.01/3 + 0.01/3.
    assert found.errors("digits", "tuned") == pytest.approx(1.2247, rel=1e-3)
    assert not networks.met
    assert found.ratio("rastrigin-30-shifted", "tuned") == pytest.approx(11)
    assert found.median("ackley-30-shifted", "literal") == FLOOR


def test_a_lineage_follows_survivors_and_both_parents() -> None:
    parents = np.array([[0, 1], [2, 2], [1, 0]])
    edges = report.edges_of(parents, np.array([3, 0, 4]))
    assert sorted(edges) == [(0, 0, False), (0, 1, True), (1, 0, False), (2, 2, False)]


def test_committed_records_give_the_committed_report(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the drawing, which takes most of the time."""
    shutil.copytree(RESULTS, tmp_path, dirs_exist_ok=True)
    names = {path.stem for path in RESULTS.glob("*.png")}
    assert names == {"curves", "diversity", "lineage"}
    monkeypatch.setattr(report, "figures_of", lambda _: dict.fromkeys(sorted(names)))
    monkeypatch.setattr("benchmarks.lab.report.png", lambda _: b"")
    assert call(monkeypatch, f"gadam --report --out {tmp_path}") == 0
    text = (RESULTS / "README.md").read_bytes()
    assert (tmp_path / "README.md").read_bytes() == text
    assert b"## What was seen" in text


@pytest.mark.slow
def test_a_study_with_methods_is_made_once_and_reports(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, peer in list(PEERS.items())[:2]:
        monkeypatch.setitem(PEERS, name, peer._replace(settings=peer.settings[1:3]))
    for name in list(PEERS)[2:]:
        monkeypatch.delitem(PEERS, name)
    # A call takes a second here, and so does the rule: the fewest generations are one.
    monkeypatch.setattr(gadam, "_seconds", lambda run: float(run() is not None))
    line = (
        f"gadam --quick --tasks breast_cancer --arms best_of_g,tuned --peers --out {tmp_path}"
    )
    assert call(monkeypatch, line) == 0
    kept = Records(tmp_path)
    curves = kept.get(Key("breast_cancer", "tuned", kind="curves"))
    assert curves is not None
    assert curves.result["gradients"] == curves.result["looks"][-1] == 8 * 10 * 6
    runs = [run.result for run in kept.select(kind="run", arm="tuned")]
    assert len(runs) == 2
    assert all(run["test_accuracy"] > 0.8 and run["test_loss"] < 0.6 for run in runs)
    middle = np.median([run["loss"] for run in runs])
    assert middle == pytest.approx(curves.result["quartiles"][1][-1], rel=1e-3)
    (tuning,) = kept.select(kind="tuning", arm="tuned")
    assert np.shape(tuning.result["losses"]) == (len(tuning.result["rates"]), 3)
    assert not kept.select(kind="peer", arm="cma_es")  # it is made for fewer parameters
    whole, *searches = (each.result for each in kept.select(kind="peer", arm="sep_cma_es"))
    assert whole["generations"] == gadam.FEWEST
    assert whole["judged"] == gadam.FEWEST * whole["setting"]["population"]
    assert (np.shape(whole["losses"]), len(searches)) == ((2, 3), 2)
    text = (tmp_path / "README.md").read_text()
    assert all(part in text for part in ("Gadam, tuned", "480", "separable CMA-ES"))
    for name in ("curves", "diversity", "lineage"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    before = (tmp_path / "records.jsonl.gz").read_bytes()
    monkeypatch.setattr(program, "program_of", None)
    monkeypatch.setattr(program, "search_of", None)
    assert call(monkeypatch, line) == 0
    assert (tmp_path / "records.jsonl.gz").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "--tasks sphere-2-shifted",
            "tasks has 'sphere-2-shifted', which fits none; pass names",
        ),
        ("--tasks digits --arms sgd", "arms is 'sgd'; choose from best_of_g,"),
        ("--tasks mnist", "tasks has mnist, which need images; pass data, too."),
        ("--tasks *-30-noisy --epochs 10", "epochs is 10, too few for a generation of every"),
        ("--tasks digits --epochs 1", "every arm on digits; pass 10 or more."),
        ("--processes -1", "processes is -1; pass a whole number above 0."),
        ("--tasks digits --seeds 0", "seeds is 0; pass a whole number above 0."),
        ("--tasks digits --report", "without records; call without --report first."),
        ("--tasks digits --peers", "call `make peers`, or leave out peers."),
    ],
)
def test_bad_arguments_end_in_one_sentence(
    options: str,
    sentence: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "evosax", None)
    monkeypatch.delitem(sys.modules, "evosax.algorithms", raising=False)
    assert_refused(f"gadam {options}", sentence, tmp_path, monkeypatch, capsys)


def test_methods_without_a_record_of_the_rule_are_refused(tmp_path: pathlib.Path) -> None:
    plain, noisy = (f"ackley-2-{how}" for how in ("shifted", "noisy"))
    with pytest.raises(ArgumentError, match="no such record on ackley-2-shifted; have tuned"):
        gadam.peer_units_of({plain: tasks.task_of(plain)}, 2, Records(tmp_path))
    assert not gadam.peer_units_of({noisy: tasks.task_of(noisy)}, 2, Records(tmp_path))


def parabola(loss: Any, judged: Any) -> Task:
    """Around 3, in three dimensions in two leaves; the starts are within 1 of 0."""

    def start(key: jax.Array) -> Any:
        start = jax.random.uniform(key, (3,), minval=-1.0)
        return {"a": start[:2], "b": jnp.abs(start[2])}

    of_task, of_judge = (lambda point, _, f=f: f(point) for f in (loss, judged))
    problem = Problem(start, of_task, None, None, of_judge, None, {})
    return Task("parabola", 4, 1, 1, 1.0, lambda key: problem)


def squared(point: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum((point["a"] - 3) ** 2) + (point["b"] - 3) ** 2


def holed(point: dict[str, jax.Array]) -> jax.Array:
    return jnp.where(point["b"] < 0, jnp.nan, squared(point))


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("loss", [squared, holed])
def test_a_method_finds_a_minimum_and_tells_where(name: str, loss: Any) -> None:
    """Also where points without a loss are the worst."""
    found = search_of(parabola(loss, loss), PEERS[name], PEERS[name].settings[1])(0, 150)
    assert float(found.loss) < 1e-3
    np.testing.assert_allclose(found.params["a"], [3, 3], atol=0.1)
    assert float(squared(found.params)) == pytest.approx(float(found.loss), rel=1e-4)


def test_a_point_is_chosen_by_the_loss_and_judged_on_its_own() -> None:
    task = parabola(squared, lambda point: 7 + squared(point))
    found = search_of(task, PEERS["snes"], Setting(16, 0.5))(0, 100)
    assert float(found.loss) == pytest.approx(7, abs=1e-2)


def test_generations_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def search(seed: int, generations: int) -> program.Best:
        counted.append(generations)
        return program.Best(jnp.zeros(()), None)

    def seconds(run: Any) -> float:
        run()
        return 0.01 * counted[-1]

    monkeypatch.setattr(gadam, "_seconds", seconds)
    assert gadam._generations(search, 2.0) == 200
    assert counted == [4, 16, 64]
    assert gadam._generations(search, 1e-4) == gadam.FEWEST


@pytest.mark.slow
def test_two_processes_learn_without_sending_and_write_one_record(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, f"gadam --processes 2 --out {tmp_path}") == 0
    (record,) = Records(tmp_path)
    found = record.result
    assert (found["processes"], found["devices"]) == (2, 8)
    assert found["learning_receives"] == 0
    # The parents with their optimizers' states reach every device, and so do the children.
    assert 1.9 < found["share"] < 2.3
    assert found["best"][-1] < 0.5 * found["best"][0]
