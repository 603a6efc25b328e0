"""What is compiled: a step of each optimizer, on some trees of parameters."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optabs
from benchmarks.lab.models import RESNETS, Transformer, network, resnet
from benchmarks.lab.timing import STATES
from benchmarks.timing.steps import ADAMW8, OPTAX, OURS, RATE, adamw8

WIDTH, HEADS, BLOCKS = 768, 12, 4  # of the transformer


class Row(NamedTuple):
    """An optimizer, and where it can be compiled."""

    make: Callable[[], Any]
    """An optax transformation, or a Stepper."""
    package: str = ""  # not of this project: the row is left out where it is missing
    device: str = ""  # the only one that its kernels are written for
    meshes: bool = True  # whether its arrays can lie on several devices
    halves: bool = False  # whether it is for parameters in bfloat16 alone

    @property
    def lacks(self) -> str:
        """The package that is missing, or too old."""
        if not self.package:
            return ""
        try:
            self.make()
        except (ImportError, AttributeError):
            return self.package
        return ""


class Stepper(NamedTuple):
    """An optimizer that makes the new parameters itself."""

    init: Callable[[Any], Any]
    step: Callable[[Any, Any, Any], Any]


def _flash_adamw() -> Stepper:
    """In 8 bits, and beside parameters in bfloat16 8 more bits of each."""
    flash_adamw = importlib.import_module("flashoptim_jax").flash_adamw

    def of(params: Any) -> Any:
        return flash_adamw(RATE, master_weight_bits=24 if in_halves(params) else None)

    return Stepper(
        lambda params: of(params).init(params),
        lambda params, state, grads: of(params).step(params, state, grads),
    )


def _narrow(make: Callable[[], Any], form: str) -> Row:
    return Row(lambda: optabs.narrow_state(make(), STATES[form]))


_NARROWED = {"optax.adamw": OPTAX["adamw"], "adamw_abs": OURS["adamw_abs"]}
ROWS: Mapping[str, Row] = {
    **{f"optax.{name}": Row(make) for name, make in OPTAX.items()},
    "optax.lion": Row(lambda: optax.lion(RATE)),
    "optax.muon": Row(lambda: optax.contrib.muon(RATE), meshes=False),
    **{name: Row(make) for name, make in OURS.items()},
    "dao_e": Row(lambda: optabs.dao_e(RATE)),
    "dao_e_bfloat16": Row(lambda: optabs.dao_e(RATE, previous="bfloat16")),
    "dao_e_uniform": Row(lambda: optabs.dao_e(RATE, controller=optabs.Controller.uniform())),
    "steered_adam": Row(lambda: optabs.steered(optabs.adam(RATE))),
    # narrow_state, and parameters in fewer bits
    **{
        f"{name}_{form}": _narrow(make, form)
        for name, make in _NARROWED.items()
        for form in STATES
    },
    "optax.lion_8bit": Row(lambda: optabs.narrow_state(optax.lion(RATE))),
    "optax.adafactor": Row(lambda: optax.adafactor(RATE, momentum=0.9), meshes=False),
    "optax.adafactor_8bit": Row(
        lambda: optabs.narrow_state(optax.adafactor(RATE, momentum=0.9)), meshes=False
    ),
    "optax.muon_8bit": Row(
        lambda: optabs.narrow_state(optax.contrib.muon(RATE)), meshes=False
    ),
    "narrow_params": Row(lambda: optabs.narrow_params(optabs.adamw(RATE)), halves=True),
    "narrow_params_8bit": Row(
        lambda: optabs.narrow_params(optabs.narrow_state(optabs.adamw(RATE))), halves=True
    ),
    # of other libraries
    ADAMW8: Row(adamw8, "rollfast", meshes=False),
    "flashoptim.flash_adamw": Row(_flash_adamw, "flashoptim-jax", "h100", meshes=False),
}


def _resnet18() -> Any:
    net = resnet(RESNETS["resnet18"], channels=3, classes=10)
    return jax.eval_shape(net.init, jax.random.key(0))[0]


def _transformer() -> Any:
    """As language models are trained: parameters, and so gradients, in bfloat16."""
    net = network(lambda rngs: Transformer(WIDTH, HEADS, BLOCKS, rngs=rngs))
    params, _ = jax.eval_shape(net.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)


def in_halves(params: Any) -> bool:
    """Whether any parameter is bfloat16."""
    return any(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))


TREES: Mapping[str, Callable[[], Any]] = {  # the parameters' shapes
    "4096x4096": lambda: {"w": jax.ShapeDtypeStruct((4096, 4096), jnp.float32)},
    "resnet18": functools.cache(_resnet18),
    "transformer_bfloat16": functools.cache(_transformer),
}
