"""What the study compares: single experts, mixtures of them, and neighbours.

A candidate rule is one more line of MIXTURES.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
from optax import contrib

import optabs
from benchmarks.lab.tasks import Task
from optabs.ensemble.experts import DEFAULT, Factory
from optabs.ensemble.state import Storage

Rates = Mapping[str, jax.Array | float]
Rate = jax.Array | float | Callable[[Any], Any]


class Expert(NamedTuple):
    """One of the optimizers that are mixed."""

    label: str
    make: Factory


_LABELS = {"sgd": "SGD", "adam": "Adam", "rmsprop": "RMSProp", "lion": "Lion"}
EXPERTS = {name: Expert(_LABELS[name], make) for name, make in DEFAULT.items()}


class Form(NamedTuple):
    """How the experts are mixed."""

    controller: optabs.Controller
    features: tuple[optabs.features.Feature, ...] = ()

    def config(self) -> dict[str, Any]:
        """As it is written into a record."""
        names = [function.__name__ for function, _ in self.features]
        return self.controller._asdict() | {"features": names}


FORMS: dict[str, Form] = {
    "dao_e": Form(optabs.Controller()),
    "dao_e_paper": Form(optabs.Controller.paper(), optabs.features.ALL),
    "uniform": Form(optabs.Controller.uniform()),
}


class Arm(NamedTuple):
    """One contender."""

    label: str
    build: Callable[[Task, Rates], optax.GradientTransformationExtraArgs]
    experts: tuple[str, ...]  # whose rates it takes
    options: dict[str, Any]  # of a mixture, for the record
    finalist: bool = True  # else an ablation, of fewer seeds
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params
    """(state, parameters) -> those that count."""

    @property
    def mixes(self) -> bool:
        """Whether it has weights to watch."""
        return bool(self.options)

    def config(self) -> dict[str, Any]:
        """What distinguishes the arm in a record."""
        return {"label": self.label, "experts": self.experts, "options": self.options}


def expert_of(task: Task, name: str, rate: Rate) -> optax.GradientTransformation:
    """An expert as a task has it: SGD with its momentum, a rate under its schedule."""
    if task.cosine:
        rate = optax.cosine_decay_schedule(rate, task.steps)
    if name == "sgd" and task.momentum:
        return optax.sgd(rate, momentum=task.momentum)
    return EXPERTS[name].make(rate)


def _decayed(
    task: Task, optimizer: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Behind the optimizer, the task's decay of weights."""
    if task.weight_decay:
        optimizer = optax.chain(optimizer, optax.add_decayed_weights(-task.weight_decay))
    return optax.with_extra_args_support(optimizer)


def single(name: str) -> Arm:
    """One expert alone."""

    def build(task: Task, rates: Rates) -> optax.GradientTransformationExtraArgs:
        return _decayed(task, expert_of(task, name, rates[name]))

    return Arm(EXPERTS[name].label, build, (name,), {})


_PREVIOUS = inspect.signature(optabs.dao_e).parameters["previous"].default


def mixture(
    label: str,
    controller: optabs.Controller = FORMS["dao_e"].controller,
    features: tuple[optabs.features.Feature, ...] = (),
    *,
    previous: Storage = _PREVIOUS,
    finalist: bool = False,
) -> Arm:
    """DAO-E over the four experts; the options are those of `optabs.dao_e`."""
    form = Form(controller, features)

    def build(task: Task, rates: Rates) -> optax.GradientTransformationExtraArgs:
        experts = {name: expert_of(task, name, rate) for name, rate in rates.items()}
        mixed = optabs.dao_e(experts=experts, **form._asdict(), previous=previous)
        return _decayed(task, mixed)

    written = form.config() | {"previous": previous}
    return Arm(label, build, tuple(EXPERTS), written, finalist)


def _schedule_free(task: Task, rates: Rates) -> optax.GradientTransformationExtraArgs:
    # Its iterates live in its state, where a decay behind it would not reach them; and it
    # stands in for schedules, so it has none.
    rate = rates["adam"]
    return contrib.schedule_free_adamw(rate, weight_decay=task.weight_decay / rate)


def _prodigy(task: Task, rates: Rates) -> optax.GradientTransformationExtraArgs:
    # It takes no rate from the setting: that is its claim.
    factor = optax.cosine_decay_schedule(1.0, task.steps) if task.cosine else 1.0
    return _decayed(task, contrib.prodigy(factor))


RULE = "rule"
UNIFORM = "uniform"
CAPPED = "capped_uniform"
PAPER = "paper"
FEATURES = "rule_features"

_default = FORMS["dao_e"].controller
SINGLES: dict[str, Arm] = {name: single(name) for name in EXPERTS}
MIXTURES: dict[str, Arm] = {
    UNIFORM: mixture("uniform", *FORMS["uniform"], finalist=True),
    CAPPED: mixture(
        "uniform, cap and multiplier", _default._replace(rate=None), finalist=True
    ),
    PAPER: mixture("the paper's form", *FORMS["dao_e_paper"], finalist=True),
    RULE: mixture("measured rule", finalist=True),
    FEATURES: mixture("rule with features", features=optabs.features.ALL),
    "rule_no_cap": mixture("rule without cap", _default._replace(cap=None)),
    "rule_no_multiplier": mixture(
        "rule without multiplier", _default._replace(multiplier_rate=None)
    ),
    "rule_shrink": mixture("rule, multiplier falls freely", _default._replace(shrink=1.0)),
    "rule_shorten": mixture("rule, weights shorten freely", _default._replace(shorten=1.0)),
    "rule_gated": mixture("rule, multiplier gated", _default._replace(gated=True)),
    "rule_gate": mixture("rule, the gate alone", _default._replace(gated=True, shrink=1.0)),
    "rule_one_alpha": mixture("rule, one alpha", _default._replace(per_leaf=False)),
    "rule_constant_rates": mixture(
        "rule with constant rates", _default._replace(rate_floor=1.0)
    ),
    "rule_no_floor": mixture("rule without floor", _default._replace(floor=0.0)),
    "rule_int8": mixture("rule, previous in int8", previous="int8"),
    "rule_float32": mixture("rule, previous in float32", previous="float32"),
}
# Of the setting's rates they see what Adam sees of its own.
NEIGHBOURS: dict[str, Arm] = {
    "schedule_free_adamw": Arm(
        "schedule-free AdamW",
        _schedule_free,
        ("adam",),
        {},
        evaluated=contrib.schedule_free_eval_params,
    ),
    "prodigy": Arm("Prodigy", _prodigy, (), {}),
}
ARMS: dict[str, Arm] = SINGLES | MIXTURES | NEIGHBOURS
TUNED = (*SINGLES, "schedule_free_adamw")  # whose best rate is looked for

# Which arms train on a task, by its scope.
SCOPES: dict[str, tuple[str, ...]] = {
    "all": tuple(ARMS),
    "few": (*SINGLES, UNIFORM, RULE),
    "drift": (*SINGLES, UNIFORM, RULE, FEATURES),
}
