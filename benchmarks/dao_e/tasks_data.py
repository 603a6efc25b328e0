"""What the study's tasks learn from: small images and text, split once."""

import functools
import math
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from benchmarks.data import load
from benchmarks.survey.problems import Split

DIGITS_VALIDATION = 400  # of 1,500, for an accuracy in steps of a quarter point
POOLED = 2  # 28 x 28 images become 14 x 14
SYMBOLS = "\n" + "".join(map(chr, range(32, 127)))
WINDOW = 33  # characters of a window of text: each but the first is predicted
HELD_OUT = 0.05  # share of the text for validation, and as much for the test
HELD_OUT_WINDOWS = 128


@functools.cache
def digits() -> tuple[Split, Split, Split]:
    """Training, validation and test images of scikit-learn's digits, 8 x 8."""
    return _splits("digits", None, DIGITS_VALIDATION)


@functools.cache
def whole(name: str, source: pathlib.Path) -> tuple[Split, Split, Split]:
    """Training, validation and test images of a data set."""
    return _splits(name, source, None)


@functools.cache
def pooled(name: str, source: pathlib.Path) -> tuple[Split, Split, Split]:
    """Training, validation and test images of a data set, pooled to half their size."""
    return _splits(name, source, None, halved)


def _splits(
    name: str,
    source: pathlib.Path | None,
    validation: int | None,
    sized: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> tuple[Split, Split, Split]:
    data = load(name, source, validation=validation)
    train, held_out, test = (
        Split(jnp.asarray(sized(images)), jnp.asarray(labels))
        for images, labels in (
            (data.train_images, data.train_labels),
            (data.validation_images, data.validation_labels),
            (data.test_images, data.test_labels),
        )
    )
    return train, held_out, test


def halved(images: np.ndarray) -> np.ndarray:
    """Images at half their size, by means: from float32 [n, height, width, channels]."""
    count, height, width, channels = images.shape
    shape = (count, height // POOLED, POOLED, width // POOLED, POOLED, channels)
    return images.reshape(shape).mean((2, 4))


@functools.cache
def text() -> tuple[jnp.ndarray, jnp.ndarray, jnp.ndarray]:
    """Python's help topics as symbols: int32 [characters] to train on, and held out ones.

    Those for validation and for the test are windows int32 [windows, WINDOW], from the end
    of the text. Other Python versions have other topics, so figures hold for the one that
    the records name.
    """
    from pydoc_data.topics import topics

    places = {symbol: place for place, symbol in enumerate(SYMBOLS)}
    unknown = places["?"]
    whole = "\n".join(topics[name] for name in sorted(topics))
    symbols = np.array([places.get(symbol, unknown) for symbol in whole], np.int32)
    share = math.floor(HELD_OUT * len(symbols))
    train, validation, test = np.split(symbols, [-2 * share, -share])
    return jnp.asarray(train), _windows(validation), _windows(test)


def _windows(symbols: np.ndarray) -> jnp.ndarray:
    starts = np.linspace(0, len(symbols) - WINDOW, HELD_OUT_WINDOWS).astype(int)
    return jnp.asarray(symbols[starts[:, None] + np.arange(WINDOW)])
