"""What the study compares: independent runs of Adam, and the rules of a population."""

from typing import Any, NamedTuple

from optabs.evolution.state import Inheritance


class Alone(NamedTuple):
    """Independent runs of Adam, the best of which counts."""

    label: str
    restarts: int = 1  # of each unit, which share its steps

    def config(self) -> dict[str, Any]:
        """What distinguishes the arm, as it is written into its records."""
        return self._asdict()


class Rule(NamedTuple):
    """Gadam under one choice of its settings."""

    label: str
    epochs: int  # of each learning; where a task has no data, an epoch is one step
    mutation_rate: float = 0.01
    draw: str = "unit"  # what mutation draws from, by its name in Problem.draws
    pressure: float = 1.0
    inheritance: Inheritance = "crossover"
    relearn: bool = True
    shared: float | None = None  # units start so near to one draw, in its spread; None: apart
    aligned: bool = False  # hidden units are brought into one order before each evolution

    def config(self) -> dict[str, Any]:
        """What distinguishes the arm, as it is written into its records."""
        return self._asdict()

    def generations(self, epochs: int) -> int:
        """How many fit into the epochs of one unit."""
        if self.relearn:
            return epochs // (2 * self.epochs)
        return epochs // self.epochs - 1


Arm = Alone | Rule
BASELINE, RESTARTS, LITERAL, TUNED = "best_of_g", "restarts", "literal", "tuned"


class Count(NamedTuple):
    """What an arm spends, for one seed at one rate."""

    gradients: int
    losses: int  # evaluated to judge


def count_of(arm: Arm, *, units: int, epochs: int, steps: int) -> Count:
    """What an arm spends.

    Args:
      arm: the arm.
      units: of the population.
      epochs: that each unit may learn.
      steps: of an epoch.
    """
    if isinstance(arm, Alone):
        learned = epochs // arm.restarts * arm.restarts
        return Count(units * learned * steps, units * learned)
    generations = arm.generations(epochs)
    learnings = 2 * generations if arm.relearn else 1 + generations
    return Count(units * learnings * arm.epochs * steps, 3 * units * generations)


_PAPER = Rule("Gadam, literal", 50)
_FAST = Rule("Gadam, tuned", 2, 0.03, "mixed", inheritance="fresh")
FUNCTION_ARMS: dict[str, Arm] = {
    BASELINE: Alone("best of g Adam"),
    RESTARTS: Alone("Adam, 40 restarts", 40),
    LITERAL: _PAPER,
    TUNED: _FAST,
}
# On functions, where an epoch is a step. Each changes one thing of a rule, or two.
FUNCTION_TRIALS: dict[str, Arm] = {
    "epochs_1": _FAST._replace(label="1 step a learning", epochs=1),
    "epochs_5": _FAST._replace(label="5 steps", epochs=5),
    "epochs_10": _FAST._replace(label="10 steps", epochs=10),
    "epochs_50": _FAST._replace(label="50 steps", epochs=50),
    "crossover": _FAST._replace(label="optimizer states crossed", inheritance="crossover"),
    "once": _FAST._replace(label="parents learn once", relearn=False),
    "crossover_once": _FAST._replace(
        label="states crossed, parents learn once", relearn=False, inheritance="crossover"
    ),
    "mutation_0.01": _FAST._replace(label="mutation 0.01", mutation_rate=0.01),
    "mutation_0.1": _FAST._replace(label="mutation 0.1", mutation_rate=0.1),
    "draw_unit": _FAST._replace(label="drawn from U(0, 1)", draw="unit"),
    "draw_start": _FAST._replace(label="drawn as the start", draw="start"),
    "draw_near": _FAST._replace(label="drawn near the entry", draw="near"),
    "pressure_0": _FAST._replace(label="no pressure", pressure=0.0),
    "pressure_4": _FAST._replace(label="pressure 4", pressure=4.0),
    "pressure_8": _FAST._replace(label="pressure 8", pressure=8.0),
    "literal_mixed": _PAPER._replace(label="literal, mixed draw", draw="mixed"),
    "literal_once": _PAPER._replace(label="literal, parents learn once", relearn=False),
    "literal_fresh": _PAPER._replace(label="literal, fresh states", inheritance="fresh"),
    "literal_10": _PAPER._replace(label="literal, 10 steps", epochs=10),
    "literal_2": _PAPER._replace(label="literal, 2 steps", epochs=2),
}

_NETWORK_PAPER = Rule("Gadam, literal", 2)
_NETWORK = Rule("Gadam, tuned", 2, 0.01, "spread", relearn=False)
NETWORK_ARMS: dict[str, Arm] = {
    BASELINE: Alone("best of g Adam"),
    RESTARTS: Alone("Adam, 4 restarts", 4),
    LITERAL: _NETWORK_PAPER,
    TUNED: _NETWORK,
}
NETWORK_TRIALS: dict[str, Arm] = {
    "epochs_1": _NETWORK._replace(label="1 epoch a learning", epochs=1),
    "epochs_5": _NETWORK._replace(label="5 epochs", epochs=5),
    "fresh": _NETWORK._replace(label="fresh optimizer states", inheritance="fresh"),
    "relearn": _NETWORK._replace(label="parents relearn", relearn=True),
    "relearn_fresh": _NETWORK._replace(
        label="parents relearn, fresh states", relearn=True, inheritance="fresh"
    ),
    "mutation_0": _NETWORK._replace(label="no mutation", mutation_rate=0.0),
    "mutation_0.1": _NETWORK._replace(label="mutation 0.1", mutation_rate=0.1),
    "draw_unit": _NETWORK._replace(label="drawn from U(0, 1)", draw="unit"),
    "draw_start": _NETWORK._replace(label="drawn as the start", draw="start"),
    "pressure_4": _NETWORK._replace(label="pressure 4", pressure=4.0),
    "shared": _NETWORK._replace(label="shared start", shared=0.1),
    "aligned": _NETWORK._replace(label="aligned before crossover", aligned=True),
}
