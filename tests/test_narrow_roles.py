"""What every field of optax's and optabs's states holds, and training on the codes of it."""

import functools
import importlib
import inspect
import pathlib
import pkgutil
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax._src.factorized
import optax._src.transform
import optax.contrib
import pytest
from optax import contrib
from sentences import REMEDIES, assert_sentence

import optabs
from optabs.storage.codecs import BY_NODE, is_node
from optabs.storage.selection import ROLES, Parameters

SHAPE = (64, 128)
PARAMS = {"w": jax.random.normal(jax.random.key(9), SHAPE)}
STEPS, RATE = 20, 1e-2
CLOSE = 0.1  # the distance of the parameters, by the way that float32's went
SIGNS = {"lion", "signum", "ademamix, simplified"}  # a sign is right or wrong
NOT_FINITE = {"rmsprop, centered and unbiased"}  # in optax too: the root of a number below 0
NONE = ""
ADAM = "ScaleByAdamState.mu ScaleByAdamState.nu"

# A row's fields that are encoded: what is left alone is as it is in float32.
ROWS: dict[str, tuple[Callable[[], Any], str]] = {
    # optax
    "adabelief": (
        lambda: optax.adabelief(RATE),
        "ScaleByBeliefState.mu ScaleByBeliefState.nu",
    ),
    "adadelta": (lambda: optax.adadelta(RATE), NONE),
    "adafactor": (lambda: optax.adafactor(RATE, momentum=0.9), "EmaState.ema FactoredState.v"),
    "adagrad": (lambda: optax.adagrad(RATE), "ScaleByRssState.sum_of_squares"),
    "adam": (lambda: optax.adam(RATE), ADAM),
    "adam, nesterov": (lambda: optax.adam(RATE, nesterov=True), ADAM),
    "adamax": (lambda: optax.adamax(RATE), ADAM),
    "adamaxw": (lambda: optax.adamaxw(RATE), ADAM),
    "adamw": (lambda: optax.adamw(RATE), ADAM),
    "adan": (
        lambda: optax.adan(RATE),
        "ScaleByAdanState.m ScaleByAdanState.n ScaleByAdanState.v",
    ),
    "amsgrad": (lambda: optax.amsgrad(RATE), "ScaleByAmsgradState.mu ScaleByAmsgradState.nu"),
    "fromage": (lambda: optax.fromage(RATE), NONE),
    "lamb": (lambda: optax.lamb(RATE), ADAM),
    "lars": (lambda: optax.lars(RATE), "TraceState.trace"),
    "lion": (lambda: optax.lion(RATE), "ScaleByLionState.mu"),
    "noisy_sgd": (lambda: optax.noisy_sgd(RATE, key=jax.random.key(0)), NONE),
    "novograd": (lambda: optax.novograd(RATE), "ScaleByNovogradState.mu"),
    "optimistic_adam": (lambda: optax.optimistic_adam_v2(RATE), ADAM),
    "optimistic_gradient_descent": (lambda: optax.optimistic_gradient_descent(RATE), NONE),
    "polyak_sgd": (lambda: optax.polyak_sgd(RATE), NONE),
    "radam": (lambda: optax.radam(RATE), ADAM),
    "rmsprop": (lambda: optax.rmsprop(RATE), "ScaleByRmsState.nu"),
    "rmsprop, centered": (lambda: optax.rmsprop(RATE, centered=True), NONE),
    "rmsprop, unbiased": (
        lambda: optax.rmsprop(RATE, bias_correction=True),
        "ScaleByRmsWithCountState.nu",
    ),
    "rmsprop, centered and unbiased": (
        lambda: optax.rmsprop(RATE, bias_correction=True, centered=True),
        NONE,
    ),
    "rprop": (lambda: optax.rprop(RATE), NONE),
    "sgd": (lambda: optax.sgd(RATE, momentum=0.9), "TraceState.trace"),
    "sign_sgd": (lambda: optax.sign_sgd(RATE), NONE),
    "signum": (lambda: optax.signum(RATE), "EmaState.ema"),
    "sm3": (lambda: optax.sm3(RATE), "ScaleBySM3State.nu"),
    "yogi": (lambda: optax.yogi(RATE), ADAM),
    # optax.contrib
    "acprop": (lambda: contrib.acprop(RATE), "ScaleByBeliefState.mu ScaleByBeliefState.nu"),
    "ademamix": (lambda: contrib.ademamix(RATE), "ScaleByAdemamixState.nu"),
    "ademamix, simplified": (
        lambda: contrib.simplified_ademamix(RATE),
        "ScaleBySimplifiedAdEMAMixState.m ScaleBySimplifiedAdEMAMixState.n",
    ),
    "adopt": (lambda: contrib.adopt(RATE), ADAM),
    "cocob": (lambda: contrib.cocob(), NONE),
    "dadapt_adamw": (lambda: contrib.dadapt_adamw(), NONE),
    "dog": (lambda: contrib.dog(), NONE),
    "dowg": (lambda: contrib.dowg(), NONE),
    "galore": (lambda: contrib.galore(RATE), ADAM),
    "madgrad": (lambda: contrib.madgrad(RATE), NONE),
    "mechanize": (
        lambda: contrib.mechanize(optax.sgd(RATE, 0.9), s_init=0.01),
        "TraceState.trace",
    ),
    "momo": (lambda: contrib.momo(), NONE),
    "momo_adam": (lambda: contrib.momo_adam(), NONE),
    "muon": (lambda: contrib.muon(RATE), "MuonState.mu"),
    "prodigy": (lambda: contrib.prodigy(), NONE),
    "schedule_free": (lambda: contrib.schedule_free(optax.adam(RATE, 0.0), RATE), ADAM),
    "schedule_free_adamw": (
        lambda: contrib.schedule_free_adamw(RATE),
        "ScaleByRmsWithCountState.nu",
    ),
    "schedule_free_sgd": (lambda: contrib.schedule_free_sgd(RATE), NONE),
    # optabs
    "optabs.adam": (lambda: optabs.adam(RATE), "EmaState.mu SizeState.nu"),
    "optabs.nag": (lambda: optabs.nag(RATE), "NagState.mu"),
}
SKIPPED = {
    "lbfgs": "its line search needs value_fn",
    "optimistic_adam": "an older form of optimistic_adam_v2",
    "optimistic_adam_v2": "has the row optimistic_adam",
    "dpsgd": "needs the gradient of every example",
    "sophia": "needs obj_fn",
    "simplified_ademamix": "has the row ademamix, simplified",
    "scale_by_learning_rate": "has no moments",
    "scale_by_madgrad": "is madgrad's",
    "scale_by_rprop": "is rprop's",
    "backtracking_line_search": "is part of lbfgs",
}


class Trained(NamedTuple):
    params: Any
    state: Any
    least: Any  # the lowest number that each leaf of the state ever held


def trained(optimizer: Any) -> Trained:
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        params, state = carry
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), number), SHAPE)
        grads = {"w": 0.3 * params["w"] + noise}
        value = jnp.sum(jnp.square(params["w"]))
        updates, state = optimizer.update(grads, state, params, value=value)
        low = [jnp.min(leaf) for leaf in real(state)]
        return (optax.apply_updates(params, updates), state), low

    start = PARAMS, optimizer.init(PARAMS)
    (params, state), lows = jax.jit(
        lambda start: jax.lax.scan(step, start, jnp.arange(STEPS))
    )(start)
    paths = [jax.tree_util.keystr(path) for path in real_paths(state)]
    return Trained(params, state, dict(zip(paths, (low.min() for low in lows), strict=True)))


def is_real(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating) or jnp.issubdtype(leaf.dtype, jnp.integer)


def real(state: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(state) if is_real(leaf)]


def real_paths(state: Any) -> list[Any]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [path for path, leaf in leaves if is_real(leaf)]


def encoded(state: Any) -> dict[str, tuple[str, bool]]:
    """By the leaf's path: the field that it belongs to, and whether its codec is of sizes."""
    parameters = Parameters(PARAMS)
    leaves = jax.tree_util.tree_leaves_with_path(state.inner, is_leaf=is_node)
    found = {}
    for path, node in leaves:
        if is_node(node):
            location = parameters.locate(path, SHAPE, state.inner)
            field = f"{location.state_class}.{location.field}"
            found[location.path] = field, BY_NODE[type(node)].sizes
    return found


@pytest.mark.parametrize("name", ROWS)
def test_fields_that_are_encoded(name: str) -> None:
    make, wanted = ROWS[name]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = jax.eval_shape(lambda: optabs.narrow_state(make()).init(PARAMS))
    assert {field for field, _ in encoded(state).values()} == set(wanted.split())
    # What is left alone says so, once, if it is more than a few numbers.
    kept = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == SHAPE]
    assert len(caught) == (wanted == NONE and bool(kept))
    for warning in caught:
        text = str(warning.message)
        assert "narrow_state knows no moment of this state and leaves it as it is" in text
        assert_sentence(text, REMEDIES)


@pytest.mark.filterwarnings("ignore:narrow_state knows no moment")
def test_the_docs_have_a_table_of_all_of_them() -> None:
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, (make, fields) in ROWS.items():
        state = jax.eval_shape(lambda make=make: optabs.narrow_state(make()).init(PARAMS))
        report = optabs.narrow_report(state)
        size = [f"{each / PARAMS['w'].size:.1f}" for each in (report.before, report.after)]
        kept = ", ".join(f"`{field.split('.')[1]}`" for field in fields.split()) or "nothing"
        rows.setdefault((kept, *size), []).append(name)
    lines = [f"| {'; '.join(names)} | {' | '.join(row)} |" for row, names in rows.items()]
    page = pathlib.Path(__file__).parents[1] / "docs" / "storage.md"
    assert "\n".join(lines) in page.read_text()


def test_prodigy_says_what_stays_and_no_more_once_its_fields_are_named() -> None:
    """Its state takes 16 bytes a parameter."""
    with pytest.warns(UserWarning, match=r"leaves it as it is, .*\.exp_avg\['w'\] among it;"):
        optabs.narrow_state(contrib.prodigy()).init(PARAMS)
    named = optabs.narrow_state(contrib.prodigy(), {"exp_avg": "int8"}).init(PARAMS)
    assert {field for field, _ in encoded(named).values()} == {"ProdigyState.exp_avg"}
    optabs.narrow_state(contrib.prodigy(), "float32").init(PARAMS)
    optabs.narrow_state(contrib.prodigy(), keep=["w"]).init(PARAMS)
    optabs.narrow_state(optabs.sgd(RATE)).init(PARAMS)


def _rows() -> list[Any]:
    """A row whose fields no row before it has is run always, and the others by test-all."""
    seen: set[str] = set()
    rows = []
    for name, (_, fields) in ROWS.items():
        if name in NOT_FINITE:
            continue
        new = not set(fields.split()) <= seen
        seen |= set(fields.split())
        rows.append(pytest.param(name, marks=() if new else pytest.mark.slow))
    return rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:narrow_state knows no moment")
@pytest.mark.parametrize("name", _rows())
def test_training_goes_where_it_goes_in_float32(name: str) -> None:
    optimizer = ROWS[name][0]()
    wanted, found = trained(optimizer), trained(optabs.narrow_state(optimizer))
    kinds = encoded(found.state)
    for path, (field, sizes) in kinds.items():
        assert (wanted.least[path] >= 0) == sizes, field
    for leaf in jax.tree.leaves((found.params, optabs.decode_state(found.state))):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.all(np.isfinite(leaf))
    way = np.asarray(wanted.params["w"] - PARAMS["w"])
    apart = np.asarray(found.params["w"] - wanted.params["w"])
    close = (2 * CLOSE if name in SIGNS else CLOSE) if kinds else 1e-4
    assert np.sqrt(np.mean(apart**2)) <= close * np.sqrt(np.mean(way**2))


@pytest.mark.slow
def test_sophia() -> None:
    """Its estimate of the curvature, `nu`, has either sign."""
    optimizer = contrib.sophia(RATE)

    def objective(params: Any) -> jax.Array:
        return jnp.sum(jnp.cos(params["w"]))

    def run(optimizer: Any) -> Any:
        state = optimizer.init(PARAMS)
        update = jax.jit(functools.partial(optimizer.update, obj_fn=objective))
        for _ in range(3):
            updates, state = update(jax.grad(objective)(PARAMS), state, PARAMS)
        return updates["w"], state

    wanted, exact = run(optimizer)
    found, state = run(optabs.narrow_state(optimizer))
    assert {field for field, _ in encoded(state).values()} == {"SophiaState.mu"}
    assert jnp.min(exact[0].nu["w"]) < 0
    error = np.sqrt(np.mean(np.square(found - wanted)) / np.mean(np.square(wanted)))
    assert error <= CLOSE


def constructors() -> set[str]:
    """All public functions of optax with a learning rate."""
    return {
        name
        for module in (optax, contrib)
        for name, function in vars(module).items()
        if inspect.isfunction(function)
        and not name.startswith("_")
        and "learning_rate" in inspect.signature(function).parameters
    }


def test_every_optimizer_of_optax_has_a_row() -> None:
    assert constructors() - set(ROWS) - set(SKIPPED) == set()


def states() -> dict[str, set[str]]:
    """All classes of states in optax and optabs that are NamedTuples, and their fields."""
    modules: list[ModuleType] = [optax._src.transform, optax._src.factorized]
    for package in (optax.contrib, optax.transforms, optabs):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "test" not in found.name:
                modules.append(importlib.import_module(found.name))
    return {
        name: set(kind._fields)
        for module in modules
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and name.endswith("State") and hasattr(kind, "_fields")
    }


def test_every_state_with_a_usual_field_has_roles() -> None:
    usual = {field for roles in ROLES.values() for field in roles}
    unknown = {name for name, fields in states().items() if fields & usual} - set(ROLES)
    assert unknown == set()
    assert set(ROLES) <= set(states())


@pytest.mark.slow
def test_fields_of_an_unknown_class_stay_as_they_are_and_it_says_so_once() -> None:
    class OwnState(NamedTuple):
        mu: Any
        nu: Any

    optimizer = optax.GradientTransformation(
        lambda params: OwnState(params, params), lambda g, s, p=None: (g, OwnState(g, g))
    )
    params = {"a": jnp.ones(SHAPE), "b": jnp.ones(SHAPE)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = optabs.narrow_state(optimizer).init(params)
    (warning,) = caught
    text = str(warning.message)
    assert "narrow_state leaves .mu['a'] (of the unknown OwnState) and 3 more as it is" in text
    assert_sentence(text, REMEDIES)
    assert encoded(state) == {}
    named = optabs.narrow_state(optimizer, {"mu": "int8", "nu": "int8"})
    assert len(encoded(named.init(params))) == 4
