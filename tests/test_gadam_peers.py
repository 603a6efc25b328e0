"""Black-box methods beside the study of Gadam: what they find, how long, and refusals."""

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import call, interrupt

from benchmarks import store
from benchmarks.gadam import peer_study, peers, study
from benchmarks.gadam.peers import PEERS, Setting
from benchmarks.gadam.tasks import Problem, Task

TASK = "rastrigin-2-shifted"
LINE = (
    "gadam --functions rastrigin --dimensions 2 --conditions shifted,noisy --networks none "
    "--quick --arms best_of_g,tuned --peers --out {out}"
)


@pytest.fixture(autouse=True)
def _ranks_of_evosax_are_promoted() -> Iterator[None]:
    with jax.numpy_rank_promotion("allow"):
        yield


def parabola(loss: Any, judged: Any) -> Task:
    """Around 3, in three dimensions in two leaves; the starts are within 1 of 0."""

    def start(key: jax.Array) -> dict[str, jax.Array]:
        first, second = jax.random.split(key)
        return {
            "a": jax.random.uniform(first, (2,), minval=-1.0),
            "b": jax.random.uniform(second, (), minval=-1.0),
        }

    problem = Problem(
        start,
        lambda point, data: loss(point),
        None, None, lambda point, data: judged(point), None, {},
    )  # fmt: skip
    return Task("parabola", 4, 1, 1, 1.0, lambda key: problem)


def squared(point: dict[str, jax.Array]) -> jax.Array:
    return jnp.sum((point["a"] - 3) ** 2) + (point["b"] - 3) ** 2


@pytest.mark.parametrize("name", PEERS)
def test_a_method_finds_a_minimum_and_tells_where(name: str) -> None:
    setting = PEERS[name].settings[1]
    found = peers.search_of(parabola(squared, squared), PEERS[name], setting)(0, 150)
    assert float(found.loss) < 1e-3
    np.testing.assert_allclose(found.params["a"], [3, 3], atol=0.1)
    assert float(squared(found.params)) == pytest.approx(float(found.loss), rel=1e-4)


def test_a_point_is_chosen_by_the_loss_and_judged_on_its_own() -> None:
    task = parabola(squared, lambda point: 7 + squared(point))
    found = peers.search_of(task, PEERS["snes"], Setting(16, 0.5))(0, 100)
    assert float(found.loss) == pytest.approx(7, abs=1e-2)


def test_points_without_a_loss_are_the_worst() -> None:
    def holed(point: dict[str, jax.Array]) -> jax.Array:
        return jnp.where(point["b"] < 0, jnp.nan, squared(point))

    for name in ("cma_es", "differential_evolution"):
        setting = PEERS[name].settings[1]
        found = peers.search_of(parabola(holed, holed), PEERS[name], setting)(0, 150)
        assert float(found.loss) < 1e-3


@pytest.mark.slow
def test_a_study_of_methods_is_interrupted_goes_on_and_reports(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in list(PEERS)[2:]:
        monkeypatch.delitem(PEERS, name)
    for name, peer in PEERS.items():
        monkeypatch.setitem(PEERS, name, peer._replace(settings=peer.settings[1:3]))
    monkeypatch.setattr(peer_study, "_seconds", lambda run: float(bool(run() is not None)))
    monkeypatch.setattr(study, "TUNING_SEEDS", study.TUNING_SEEDS[:2])
    line = LINE.format(out=tmp_path)
    made = interrupt(monkeypatch, peer_study, "make", at=2)
    assert call(monkeypatch, line) == 130
    assert call(monkeypatch, line) == 0
    assert [unit.arm for unit, _ in made] == ["cma_es", "sep_cma_es", "sep_cma_es"]
    assert not (tmp_path / "peers" / "rastrigin-2-noisy").exists()
    results = store.read_json(tmp_path / "peers" / TASK / "cma_es.json")["results"]
    # A call takes a second here, and so does the rule: the fewest generations are one.
    assert results["generations"] == peer_study.FEWEST
    assert results["losses"] == peer_study.FEWEST * results["setting"]["population"]
    assert np.shape(results["tuning"]) == (2, 2)
    assert len(results["final"]) == 2
    text = (tmp_path / "README.md").read_text()
    for part in ("equal time", "separable CMA-ES", "rastrigin, 2, shifted | "):
        assert part in text
    assert call(monkeypatch, line) == 0
    assert len(made) == 3


def test_generations_are_those_that_fit() -> None:
    class Loss:
        loss = jnp.zeros(())

    counted: list[int] = []

    def search(seed: int, generations: int) -> Any:
        counted.append(generations)
        return Loss

    with pytest.MonkeyPatch.context() as patch:

        def seconds(run: Any) -> float:
            run()
            return 0.01 * counted[-1]

        patch.setattr(peer_study, "_seconds", seconds)
        assert peer_study._generations(search, 2.0) == 200
        assert counted == [4, 16, 64]
        assert peer_study._generations(search, 1e-4) == peer_study.FEWEST


def test_without_a_record_of_the_rule_it_says_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = LINE.format(out=tmp_path).replace("best_of_g,tuned", "best_of_g")
    line = line.replace("shifted,noisy", "shifted")
    assert call(monkeypatch, line) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "no such record on rastrigin-2-shifted; have tuned among arms." in message
    assert not (tmp_path / "peers").exists()


def test_without_evosax_it_says_so_before_any_time_is_spent(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "evosax", None)
    monkeypatch.delitem(sys.modules, "evosax.algorithms", raising=False)
    assert call(monkeypatch, LINE.format(out=tmp_path)) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "call `make peers`, or leave out peers." in message
    assert not list(tmp_path.rglob("*.json"))
