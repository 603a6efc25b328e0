"""What narrow_state refuses, in one sentence, and what it says."""

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint
import pytest
from sentences import REMEDIES, assert_sentence

import optabs

PARAMS = {"w": jnp.ones((64, 128))}
GRADS = {"w": jnp.full((64, 128), 0.5)}


class Last(NamedTuple):
    gradient: Any


def narrow(codecs: Any = None, **options: Any) -> Any:
    return optabs.narrow_state(optabs.adam_abs(1e-3), codecs, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (({"mu": "int4"},), {}, "codecs gives mu 'int4'; choose from 'float32', 'bfloat16',"),
        (({"mu": 8},), {}, "codecs gives mu 8; choose from"),
        (("int4",), {}, "codecs is 'int4'; choose from 'float32', 'bfloat16',"),
        (("int8_square",), {}, "codecs is 'int8_square'; choose from 'float32',"),
        ((8,), {}, "codecs is 8, a int; pass a codec's name, a mapping (field -> codec)"),
        ((), {"min_size": -1}, "min_size is -1; pass a whole number, 0 or more."),
        ((), {"keep": 5}, "keep is 5; pass a sequence of names."),
        ((), {"seed": "a"}, "seed is 'a'; pass a whole number of 32 bits."),
        ((), {"seed": 1.5}, "seed is 1.5; pass a whole number of 32 bits."),
        ((), {"seed": 2**40}, "pass a whole number of 32 bits."),
        ((), {"seed": jnp.arange(3)}, "pass a whole number of 32 bits."),
        ((), {"seed": np.arange(3)}, "pass a whole number of 32 bits."),
        ((), {"seed": np.float32(3)}, "pass a whole number of 32 bits."),
        ((jnp.bfloat16,), {}, "; pass a codec's name, a mapping (field -> codec)"),
        ((), {"keep": [0]}, "keep has 0, which is no name; pass strings."),
        ((), {"min_size": True}, "min_size is True; pass a whole number, 0 or more."),
        ((), {"keep": "head"}, "keep is 'head', one string; pass a sequence of names."),
    ],
)
def test_refused_at_construction(
    arguments: tuple[Any, ...], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        narrow(*arguments, **options)
    assert_sentence(str(error.value), REMEDIES)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (({"nu": "int8"},), {}, "gives nu 'int8', which rounds small denominators to 0;"),
        (({"mu": "uint8"},), {}, "gives mu 'uint8', which has nothing below 0;"),
        (({"v_t": "int8"},), {}, "codecs has 'v_t', the name of no field of this state;"),
        ((), {"keep": ["v"]}, "keep has 'v', the name of no parameter; choose from 'w'."),
        ((), {"keep": ["layer/w"]}, "keep has 'layer/w', the name of no parameter;"),
    ],
)
def test_refused_at_init(
    arguments: tuple[Any, ...], options: dict[str, Any], sentence: str
) -> None:
    optimizer = narrow(*arguments, **options)
    for init in (optimizer.init, jax.jit(optimizer.init)):
        with pytest.raises(ValueError, match=re.escape(sentence)) as error:
            init(PARAMS)
        assert_sentence(str(error.value), REMEDIES)


@pytest.mark.slow
def test_a_state_of_another_optimizer_is_not_encoded() -> None:
    like = narrow().init(PARAMS)
    other = optabs.adam_abs(1e-3).init({"v": jnp.ones(3)})
    for state in (optabs.momentum(1e-3).init(PARAMS), other):
        with pytest.raises(ValueError, match="state and like are not of one") as error:
            optabs.encode_state(state, like)
        assert_sentence(str(error.value), REMEDIES)
    plain = optabs.decode_state(like)
    for state, given, sentence in (
        (plain, narrow().init({"w": jnp.ones((32, 256))}), "state and like are not of one"),
        (like, like, "state is narrow already; pass what optabs.decode_state gives of it."),
        (plain, plain, "like, a tuple, holds no NarrowState; pass"),
        (plain, narrow(), "like, a GradientTransformationExtraArgs, holds no NarrowState;"),
    ):
        with pytest.raises(ValueError, match=sentence) as error:
            optabs.encode_state(state, given)
        assert_sentence(str(error.value), REMEDIES)


def test_a_narrow_state_inside_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a narrow_state already; pass it") as error:
        optabs.narrow_state(optax.chain(narrow(), optax.scale(-1.0))).init(PARAMS)
    assert_sentence(str(error.value), REMEDIES)


@pytest.mark.parametrize("seed", [2**32 - 1, -1, np.array(3), np.uint32(7), jnp.uint32(9)])
def test_whole_numbers_of_32_bits_are_seeds(seed: Any) -> None:
    wanted = narrow(seed=jnp.uint32(int(seed) % 2**32)).init(PARAMS)
    assert narrow(seed=seed).init(PARAMS).draws == wanted.draws


def test_names_from_a_generator_are_kept() -> None:
    state = narrow(keep=(name for name in ["w"])).init(PARAMS)
    assert optax.tree.get(state, "nu")["w"].dtype == jnp.float32


def test_a_warning_names_the_line_that_calls_init() -> None:
    with pytest.warns(UserWarning, match="knows no moment") as warned:
        optabs.narrow_state(optax.contrib.prodigy()).init(PARAMS)
    assert warned[0].filename == __file__


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers() -> None:
    state = narrow(min_size=np.int32(16)).init(PARAMS)
    assert optax.tree.get(state, "nu")["w"].ranges.shape == (64, 1)


def test_a_function_that_names_no_codec_is_refused_at_init() -> None:
    with pytest.raises(ValueError, match="codecs gives mu 'wide'; choose from"):
        narrow(lambda path, shape: "wide").init(PARAMS)


def test_a_state_of_other_codecs_is_refused() -> None:
    state = narrow({"mu": "bfloat16"}).init(PARAMS)
    for update in (narrow().update, jax.jit(narrow().update)):
        with pytest.raises(ValueError, match=r"as bfloat16, but codecs gives it int8;"):
            update(GRADS, state, PARAMS)
    with pytest.raises(ValueError, match=r"as float32, but codecs gives it bfloat16;"):
        narrow({"nu": "bfloat16"}).update(
            GRADS, narrow({"nu": "float32"}).init(PARAMS), PARAMS
        )
    for wide in (narrow("float32"), narrow(keep=["w"]), narrow(min_size=10**6)):
        with pytest.raises(ValueError, match=r"as float32, but codecs gives it u?int8;"):
            narrow().update(GRADS, wide.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match="is tuple in place of NarrowState; pass"):
        narrow().update(GRADS, optabs.adam_abs(1e-3).init(PARAMS), PARAMS)


@pytest.mark.slow
def test_a_checkpoint_of_other_codecs_is_never_silently_wrong() -> None:
    """Of two codecs of 8 bits the arrays have the same shapes, and a restore may cast."""
    last = optax.GradientTransformation(
        Last, lambda grads, state, params=None: (state.gradient, Last(grads))
    )
    old, new = (optabs.narrow_state(last, {"gradient": name}) for name in ("int8", "uint8"))
    _, state = old.update(GRADS, old.init(PARAMS), PARAMS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, state)
            checkpointer.wait_until_finished()
            restored = checkpointer.restore(path, jax.eval_shape(new.init, PARAMS))
            same = checkpointer.restore(path, jax.eval_shape(old.init, PARAMS))
            untargeted = [checkpointer.restore(path)]
    for read in (optabs.decode_state, lambda state: new.update(GRADS, state, PARAMS)):
        with pytest.raises(ValueError, match="state has arrays of other codecs") as error:
            read(restored)
        assert_sentence(str(error.value), REMEDIES)
    with pytest.raises(ValueError, match="a dict in place of a NarrowState") as error:
        optabs.decode_state((*untargeted,))
    assert_sentence(str(error.value), REMEDIES)
    updates, _ = jax.jit(new.update)(GRADS, restored, PARAMS)
    assert np.all(np.isnan(updates["w"]))
    updates, _ = jax.jit(old.update)(GRADS, same, PARAMS)
    assert np.all(np.isfinite(updates["w"]))
    # The way that works: read by what wrote it, then encode.
    moved = optabs.encode_state(optabs.decode_state(same), new.init(PARAMS))
    after, _ = new.update(GRADS, moved, PARAMS)
    np.testing.assert_allclose(after["w"], updates["w"], rtol=0.05)


@pytest.mark.slow
def test_complex_moments_are_left_alone_and_it_says_so() -> None:
    params = {"c": jnp.ones((64, 128), jnp.complex64), **PARAMS}
    with pytest.warns(UserWarning, match=r"narrow_state leaves .*\['c'\] \(complex64\)"):
        state = narrow().init(params)
    assert state.inner[0].numerator.mu["c"].dtype == jnp.complex64
    updates, _ = narrow().update(params, state, params)
    assert updates["c"].dtype == jnp.complex64
    quiet = narrow(keep=["c"]).init(params)
    assert quiet.inner[0].denominator.nu["c"].dtype == jnp.float32


def test_a_nan_stays_where_it_is() -> None:
    grads = {"w": GRADS["w"].at[3, 5].set(jnp.nan)}
    optimizer = narrow()
    _, state = jax.jit(optimizer.update)(grads, optimizer.init(PARAMS), PARAMS)
    nu = np.asarray(optabs.decode_state(state)[0].denominator.nu["w"])
    assert np.isnan(nu[3, 5])
    assert np.isfinite(nu).sum() == nu.size - 1
