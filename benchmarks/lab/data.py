"""Image data sets as arrays: whatever the source, the same values in the same order."""

import pathlib
from typing import NamedTuple

import numpy as np

from benchmarks.lab import originals, tfds_source
from benchmarks.lab.originals import Arrays, DataError, get_spec, read_npz, require


class Dataset(NamedTuple):
    """A data set ready for training."""

    name: str
    train_images: np.ndarray  # float32 [n, height, width, channels], in [0, 1]
    train_labels: np.ndarray  # int32 [n]
    validation_images: np.ndarray
    validation_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int


def load(
    name: str, source: pathlib.Path | None = None, *, validation: int | None = None
) -> Dataset:
    """Loads a data set.

    Args:
      name: "digits", "mnist", "fashion_mnist" or "cifar10".
      source: a folder of the original files, for CIFAR-10 also of WebP sheets, or its
        archive; an .npz written by `save_arrays`; or a folder that holds one of these under
        the name of the data set. None reads "digits" from scikit-learn and the others
        through tensorflow-datasets, which downloads what it has not prepared yet.
      validation: how many of the last training images to hold out; None means 200 for
        "digits" and 5,000 for the others.

    Returns:
      Images float32 [n, height, width, channels] in [0, 1] and labels int32 [n].

    Raises:
      DataError: an argument, file or package is not as it must be.
    """
    spec = get_spec(name)
    held_out = spec.validation if validation is None else validation
    if isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 1:
        raise DataError(f"validation {validation!r} is not a positive whole number of images.")
    arrays = _read(name, None if source is None else pathlib.Path(source))
    return _split(name, arrays, held_out)


def _read(name: str, source: pathlib.Path | None) -> Arrays:
    if source is None:
        return _read_digits() if name == "digits" else tfds_source.read(name)
    inner = (source / name, source / f"{name}.npz")
    source = next((path for path in inner if path.exists()), source)
    origin = f"source {str(source)!r}"
    if not source.exists():
        raise DataError(f"{origin} does not exist; pass {get_spec(name).expects}.")
    if source.suffix == ".npz":
        return originals.check_arrays(name, Arrays(*read_npz(source, Arrays._fields)), origin)
    if name == "digits":
        raise DataError(f"{origin} is of no use for 'digits'; pass no source or an .npz.")
    if name == "cifar10":
        arrays = originals.read_cifar10(source)
    else:
        arrays = originals.read_idx_files(name, source)
    return originals.check_published(name, arrays, origin)


def _split(name: str, arrays: Arrays, held_out: int) -> Dataset:
    count = len(arrays.train_labels)
    if held_out >= count:
        raise DataError(
            f"validation {held_out} leaves none of the {count} training images of {name!r}; "
            "pass a smaller number."
        )
    kept = count - held_out
    scale = np.float32(get_spec(name).top_level)
    images, labels = arrays.train_images / scale, arrays.train_labels.astype(np.int32)
    return Dataset(
        name=name,
        train_images=images[:kept],
        train_labels=labels[:kept],
        validation_images=images[kept:],
        validation_labels=labels[kept:],
        test_images=arrays.test_images / scale,
        test_labels=arrays.test_labels.astype(np.int32),
        classes=originals.CLASSES,
    )


def _read_digits() -> Arrays:
    bunch = require("sklearn.datasets", "benchmarks").load_digits()
    # RandomState, unlike Generator, promises the same stream in every numpy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    images = bunch.images[order, ..., None].astype(np.uint8)
    labels = bunch.target[order].astype(np.uint8)
    return Arrays(images[297:], labels[297:], images[:297], labels[:297])
