"""The bytes of a state: what is counted, as what, and what is printed."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib
import pytest
from flax import nnx

import optabs

PARAMS = {"w": jnp.ones((64, 128)), "b": jnp.ones(128)}
OPTIMIZERS = {
    "nothing": optax.identity(),
    "sgd": optax.sgd(1e-3),
    "adamw": optax.adamw(1e-3),
    "adadelta_abs": optabs.adadelta_abs(),
    "adafactor": optax.adafactor(1e-3),
    "schedule_free": optax.contrib.schedule_free_adamw(1e-3),
    "dao_e": optabs.dao_e(1e-3),
    "narrow": optabs.narrow_state(optabs.adamw_abs(1e-3)),
    "halves": optabs.narrow_state(optabs.adamw(1e-3), "bfloat16"),
    "params": optabs.narrow_params(optabs.adamw(1e-3)),
    "both": optabs.narrow_params(optabs.narrow_state(optabs.adamw(1e-3))),
    "inside": optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.MultiSteps(optabs.narrow_state(optax.adam(1e-3)), 2).gradient_transformation(),
    ),
    "injected": optax.inject_hyperparams(optabs.adam)(learning_rate=1e-3),
}


def size(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_is_what_the_state_takes_and_before_what_it_would(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    state = optimizer.init(PARAMS)
    report = optabs.narrow_report(state)
    assert report.after == size(state)
    # Without the wrapper it is the decoded state, and bits are a float32 copy.
    narrow = [row for row in report.rows if row.field == "bits"]
    wanted = size(optabs.decode_state(state)) + 3 * sum(row.after for row in narrow)
    wanted += sum(row.after for row in report.rows if row.kept == "bfloat16" and _whole(row))
    # NarrowState's own two numbers are not of the decoded one.
    wanted += sum(row.after for row in report.rows if row.field in ("format", "draws"))
    assert report.before == wanted
    assert report.fields == optabs.narrow_report(jax.eval_shape(optimizer.init, PARAMS)).fields
    assert report == optabs.narrow_report(jax.eval_shape(optimizer.init, PARAMS))
    assert sum(after for _, after in report.fields.values()) == report.after


def _whole(row: Any) -> bool:
    """Whether bfloat16 is how the optimizer itself keeps it."""
    return row.field not in ("mu", "nu")


def test_fields_and_leaves_have_their_names() -> None:
    report = optabs.narrow_report(OPTIMIZERS["both"].init(PARAMS))
    rows = {(row.field, row.leaf): row for row in report.rows}
    bits, codes = rows["bits", "['w']"], rows["mu", "['w']"]
    assert (bits.shape, bits.kept) == ((64, 128), "int8")
    assert (bits.before, bits.after) == (4 * 64 * 128, 64 * 128)
    assert codes.before == 4 * 64 * 128
    assert codes.after < 1.1 * 64 * 128
    assert rows["nu", "['b']"].kept == "float32"
    # Two fields of one name are told apart by where they are.
    twice = optabs.narrow_report(optabs.adadelta_abs().init(PARAMS))
    assert {name for name in twice.fields if name.endswith("nu")} == {
        "[0].denominator.nu",
        "[1].nu",
    }
    # A parameter's name is no field.
    named = optabs.narrow_report(optabs.adam(1e-3).init({"mu": jnp.ones(2)}))
    assert {("mu", "['mu']"), ("nu", "['mu']")} <= {(r.field, r.leaf) for r in named.rows}


@pytest.mark.parametrize(
    "box", [nnx.Param, lambda array: nn.Partitioned(array, (None, None))], ids=["nnx", "linen"]
)
def test_boxes_count_as_their_arrays(box: Any) -> None:
    for name in ("adamw", "narrow", "both"):
        plain = optabs.narrow_report(OPTIMIZERS[name].init({"w": PARAMS["w"]}))
        boxed = optabs.narrow_report(OPTIMIZERS[name].init({"w": box(PARAMS["w"])}))
        assert boxed.fields == plain.fields


def test_whole_numbers_inside_of_narrow_params_are_no_copies() -> None:
    class CountState(NamedTuple):
        hits: Any

    counting = optax.GradientTransformation(
        lambda params: CountState(jnp.zeros(100, jnp.int8)),
        lambda grads, state, params: (grads, state),
    )
    report = optabs.narrow_report(optabs.narrow_params(counting).init(PARAMS))
    assert report.fields["hits"] == (100, 100)


def test_a_state_of_flax_and_numbers_of_python() -> None:
    model = nnx.Linear(64, 128, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, OPTIMIZERS["narrow"], wrt=nnx.Param)
    report = optabs.narrow_report(nnx.as_pure(optimizer.opt_state))
    assert report.fields["mu"][1] < 0.3 * report.fields["mu"][0]
    assert optabs.narrow_report({"count": 3, "nothing": None}).after == 4


def test_printed_it_is_a_table() -> None:
    report = optabs.narrow_report(OPTIMIZERS["narrow"].init(PARAMS))
    lines = str(report).splitlines()
    assert repr(report) == str(report)
    assert " ".join(lines[0].split()) == "field and leaf shape kept in in float32 now"
    (weights,) = [line for line in lines if "uint8" in line]
    row = next(row for row in report.rows if row.field == "nu" and "w" in row.leaf)
    assert weights.split()[:4] == ["['w']", "[64,", "128]", "uint8"]
    assert weights.split()[-3:] == ["32,768", f"{row.after:,}", "25%"]
    (nu,) = [line for line in lines if line.startswith("nu")]
    assert nu.split() == ["nu", "33,280", f"{row.after + 512:,}", "27%"]
    assert lines[-1].split() == ["all", f"{report.before:,}", f"{report.after:,}", "27%"]
    assert str(optabs.narrow_report(())).splitlines()[-1].split() == ["all", "0", "0"]
