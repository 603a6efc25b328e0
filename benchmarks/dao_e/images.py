"""The images of the paper's experiment: standardised, on the device, cropped and flipped."""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.lab.arguments import ArgumentError
from benchmarks.lab.data import Arrays, Dataset, load, read_npz
from benchmarks.runs import Device

PADDING = 4
VALIDATION_SHARE = 5  # training images of a subset for each of its validation images


def load_images(dataset: str, data: pathlib.Path | None, subset: int) -> tuple[Device, int]:
    """A data set on the device, each channel of mean 0 and variance 1 in training.

    Args:
      dataset: its name.
      data: what `benchmarks.lab.data.load` reads, or a folder of several array files
        `<dataset>-*.npz`, which are joined in the order of their names.
      subset: how many training images to use; a fifth as many validation images go with
        them. 0: all. The test set is whole in either case.

    Returns:
      The three sets, and the number of classes.

    Raises:
      ArgumentError: the subset is larger than the training set.
      DataError: the data set cannot be read.
    """
    parts = sorted(data.glob(f"{dataset}-*.npz")) if data is not None else []
    loaded = _load_parts(dataset, parts) if parts else load(dataset, data)
    available = len(loaded.train_labels)
    if subset > available:
        raise ArgumentError(
            f"subset is {subset}, but {dataset} has {available} training images; pass a "
            "smaller one, or 0 for all."
        )
    if subset:
        held_out = max(1, subset // VALIDATION_SHARE)
        loaded = loaded._replace(
            train_images=loaded.train_images[:subset],
            train_labels=loaded.train_labels[:subset],
            validation_images=loaded.validation_images[:held_out],
            validation_labels=loaded.validation_labels[:held_out],
        )
    return Device.put(standardise(loaded)), loaded.classes


def standardise(data: Dataset) -> Dataset:
    """The data set with each channel of mean 0 and variance 1 over the training images."""
    mean = data.train_images.mean((0, 1, 2), dtype=np.float64).astype(np.float32)
    spread = data.train_images.std((0, 1, 2), dtype=np.float64).astype(np.float32)
    spread = np.where(spread > 0, spread, np.float32(1))
    return data._replace(
        train_images=(data.train_images - mean) / spread,
        validation_images=(data.validation_images - mean) / spread,
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


def _load_parts(dataset: str, paths: list[pathlib.Path]) -> Dataset:
    parts = [Arrays(*read_npz(path, Arrays._fields)) for path in paths]
    whole = Arrays(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        joined = pathlib.Path(folder) / f"{dataset}.npz"
        np.savez(joined, **whole._asdict())
        return load(dataset, joined)
