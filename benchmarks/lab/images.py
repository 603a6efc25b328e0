"""Images as networks are trained on them: standardised, cropped and flipped."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.data import Dataset, load

PADDING = 4
VALIDATION_SHARE = 5  # training images of a subset for each of its validation images


def standardised(dataset: str, source: pathlib.Path | None, subset: int = 0) -> Dataset:
    """A data set, each channel of mean 0 and variance 1 over the training images.

    Args:
      dataset: its name.
      source: what `benchmarks.lab.data.load` reads.
      subset: how many training images to use; a fifth as many validation images go with
        them. 0: all. The test set is whole in either case.

    Raises:
      ArgumentError: the subset is larger than the training set.
      DataError: the data set cannot be read.
    """
    data = load(dataset, source)
    available = len(data.train_labels)
    if subset > available:
        raise ArgumentError(
            f"subset is {subset}, but {dataset} has {available} training images; pass a "
            "smaller one, or 0 for all."
        )
    held_out = max(1, subset // VALIDATION_SHARE) if subset else None
    train = data.train_images[: subset or None]
    mean = train.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    spread = train.std((0, 1, 2), dtype=np.float64).astype(np.float32)
    spread = np.where(spread > 0, spread, np.float32(1))
    return data._replace(
        train_images=(train - mean) / spread,
        train_labels=data.train_labels[: subset or None],
        validation_images=(data.validation_images[:held_out] - mean) / spread,
        validation_labels=data.validation_labels[:held_out],
        test_images=(data.test_images - mean) / spread,
    )


def crop(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Windows of the images' own size out of the images padded by 4 zeros on each side.

    Args:
      images: float [n, height, width, channels].
      rows: int [n], where each window begins, in [0, 8].
      columns: likewise.
    """
    border = ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0))
    size = images.shape[1:]

    def window(image: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (row, column, 0), size)

    return jax.vmap(window)(jnp.pad(images, border), rows, columns)


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image cropped at a place of its own, and every other one mirrored, by chance."""
    crop_key, flip_key = jax.random.split(key)
    rows, columns = jax.random.randint(crop_key, (2, len(images)), 0, 2 * PADDING + 1)
    cropped = crop(images, rows, columns)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, cropped[:, :, ::-1], cropped)
