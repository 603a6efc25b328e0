"""Image data sets as arrays: whatever the source, the same values in the same order."""

import contextlib
import pathlib
import sys
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np

from benchmarks.lab import originals
from benchmarks.lab.originals import SPECS, Arrays, DataError, refusing, require

PROBE_SECONDS = 5.0


class Dataset(NamedTuple):
    """A data set ready for training."""

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
      source: a folder of the original files, of CIFAR-10 its binary version; an .npz of
        `train_images`, `train_labels`, `test_images` and `test_labels`; or a folder that
        holds one of these under the name of the data set. None reads "digits" from
        scikit-learn and the others from the files that tensorflow-datasets downloads, once.
      validation: how many of the last training images to hold out; None means 200 for
        "digits" and 5,000 for the others.

    Raises:
      DataError: an argument, file or package is not as it must be.
    """
    arrays = arrays_of(name, source)
    count = len(arrays.train_labels)
    held_out = SPECS[name].validation if validation is None else validation
    if not 0 < held_out < count:
        raise DataError(
            f"validation is {held_out}; pass a number above 0 and below {count}, the training "
            f"images of {name!r}."
        )
    scale = np.float32(SPECS[name].top_level)
    train, test = arrays.train_images / scale, arrays.test_images / scale
    labels, test_labels = (
        each.astype(np.int32) for each in (arrays.train_labels, arrays.test_labels)
    )
    cut = count - held_out
    return Dataset(
        train[:cut], labels[:cut], train[cut:], labels[cut:], test, test_labels,
        originals.CLASSES,
    )  # fmt: skip


def arrays_of(name: str, source: pathlib.Path | None) -> Arrays:
    """The arrays of a data set as they were published; for `name` and `source` see `load`."""
    if name not in SPECS:
        raise DataError(f"data set {name!r} is not known; name one of {', '.join(SPECS)}.")
    if source is None:
        return _read_digits() if name == "digits" else _fetched(name)
    inner = (source / name, source / f"{name}.npz")
    source = next((path for path in inner if path.exists()), source)
    origin = f"source {str(source)!r}"
    if not source.exists():
        raise DataError(f"{origin} does not exist; pass {originals.EXPECTED}.")
    if source.suffix == ".npz":
        return originals.check(name, originals.read_npz(source), origin, published=False)
    if name == "digits":
        raise DataError(f"{origin} is of no use for 'digits'; pass no source or an .npz.")
    files = {file: source / file for file in (*originals.IDX_FILES, originals.CIFAR_FILE)}
    return originals.check(name, originals.read(name, files), origin)


def _read_digits() -> Arrays:
    bunch = require("sklearn.datasets", "benchmarks").load_digits()
    # RandomState, unlike Generator, promises the same stream in every numpy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    images = bunch.images[order, ..., None].astype(np.uint8)
    labels = bunch.target[order].astype(np.uint8)
    return Arrays(images[297:], labels[297:], images[:297], labels[:297])


def _fetched(name: str) -> Arrays:
    """The published arrays, from the files that tensorflow-datasets downloads and keeps.

    Its builders need TensorFlow to unpack them; what downloads them does not.
    """
    require("importlib_resources")  # tfds does not say that it needs it
    tfds = require("tensorflow_datasets")
    remedy = f"set TFDS_DATA_DIR to another folder or pass --data with {originals.EXPECTED}"
    with refusing(f"data set {name!r} cannot be had through tfds", remedy):
        infos = tfds.builder_cls(name).url_infos
        folder = pathlib.Path(tfds.core.constants.DATA_DIR).expanduser() / "downloads"
        if len([*(folder / name).glob("*.INFO")]) < len(infos):
            _probe(name, next(iter(infos)), remedy)
        if not sys.stderr.isatty():
            tfds.disable_progress_bar()
        manager = tfds.download.DownloadManager(
            download_dir=folder, url_infos=infos, dataset_name=name
        )
        paths = manager.download({info.filename: url for url, info in infos.items()})
        files = {file: pathlib.Path(path) for file, path in paths.items()}
        arrays = originals.read(name, files)
    return originals.check(name, arrays, f"folder {str(folder / name)!r}")


def _probe(name: str, url: str, remedy: str) -> None:
    """Says soon that a host cannot be reached, which tfds would try for minutes."""
    request = urllib.request.Request(url, method="HEAD")
    problem = f"data set {name!r} is not downloaded yet and {request.host} cannot be reached"
    # A host that answers with an error is there: let tfds say what is wrong.
    with refusing(problem, remedy), contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
