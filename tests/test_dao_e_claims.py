"""The paper's experiment with DAO-E: its claims are computed from the records."""

from typing import Any

import pytest

from benchmarks.dao_e import paper_report


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
