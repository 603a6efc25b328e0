"""Image data sets as arrays: whatever the source, the same values in the same order."""

import hashlib
import importlib
import io
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lab.records import write_bytes

CLASSES = 10
# In the order of the fields of Arrays.
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


class DataError(ValueError):
    """A data set, file or argument that cannot be used, and what to do about it."""


class Arrays(NamedTuple):
    """A data set as it was published: levels of pixels, in the order of the originals."""

    train_images: np.ndarray  # uint8 [n, height, width, channels]
    train_labels: np.ndarray  # uint8 [n]
    test_images: np.ndarray  # uint8 [m, height, width, channels]
    test_labels: np.ndarray  # uint8 [m]


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


class Spec(NamedTuple):
    """What is known of a data set before it is read."""

    shape: tuple[int, int, int]
    expects: str  # what a source may be, for messages
    arrays_sha256: str = ""  # of the bytes of the four arrays
    files_sha256: tuple[str, ...] = ()  # in the order of IDX_FILES
    top_level: int = 255  # the level of a pixel that becomes 1.0
    validation: int = 5000


IDX_SOURCE = "a folder with the four original idx .gz files or an .npz of arrays"
CIFAR_SOURCE = (
    "a folder with the original python batches, cifar-10-python.tar.gz, a folder of WebP "
    "sheets with labels.npz or an .npz of arrays"
)
SPECS = {
    "digits": Spec((8, 8, 1), "no source or an .npz of arrays", top_level=16, validation=200),
    "mnist": Spec(
        (28, 28, 1),
        IDX_SOURCE,
        "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
    "fashion_mnist": Spec(
        (28, 28, 1),
        IDX_SOURCE,
        "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    "cifar10": Spec(
        (32, 32, 3),
        CIFAR_SOURCE,
        "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660",
    ),
}


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


def get_spec(name: str) -> Spec:
    """What is known of a data set; raises DataError for an unknown name."""
    if name not in SPECS:
        raise DataError(f"data set {name!r} is not known; name one of {', '.join(SPECS)}.")
    return SPECS[name]


def save_arrays(data: Dataset | Arrays, path: pathlib.Path) -> None:
    """Writes the four uint8 arrays of a data set as a compressed .npz, whole or not at all.

    A Dataset is written with its validation images back at the end of the training images,
    so that loading the file gives an equal Dataset.

    Raises:
      DataError: the path does not end in .npz or cannot be written.
    """
    if path.suffix != ".npz":
        raise DataError(f"array file {str(path)!r} does not end in .npz; rename it.")
    arrays = _join(data) if isinstance(data, Dataset) else data
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays._asdict())
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise DataError(
            f"array file {str(path)!r} cannot be written ({reason}); pass a path that can be."
        ) from error


def require(module: str, extra: str = "data") -> Any:
    """Imports a package of an extra; raises DataError with how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"package {module!r} cannot be imported ({error}); call "
            f'`pip install "optabs[{extra}]"`.'
        ) from error


def check_arrays(name: str, arrays: Arrays, origin: str) -> Arrays:
    """The arrays; raises DataError unless shapes, types and values fit the data set."""
    spec = get_spec(name)
    for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if images.dtype != np.uint8 or images.shape[1:] != spec.shape or labels.ndim != 1:
            problem = (
                f"{split} images {images.dtype} {list(images.shape)} and labels "
                f"{list(labels.shape)} instead of uint8 {['n', *spec.shape]} and ['n']"
            )
        elif len(images) != len(labels):
            problem = f"{len(images)} {split} images but {len(labels)} labels"
        elif not len(images):
            problem = f"no {split} images"
        elif labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= CLASSES:
            problem = f"{split} labels other than the whole numbers 0 to {CLASSES - 1}"
        elif images.max() > spec.top_level:
            problem = f"{split} pixels above {spec.top_level}"
        else:
            continue
        raise DataError(f"{origin} has {problem}; for {name!r} pass {spec.expects}.")
    return arrays


def check_published(name: str, arrays: Arrays, origin: str) -> Arrays:
    """The arrays; raises DataError unless they are, byte for byte, those published."""
    check_arrays(name, arrays, origin)
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.uint8).data)
    if digest.hexdigest() != get_spec(name).arrays_sha256:
        raise DataError(
            f"{origin} does not hold the published data set {name!r} (sha256 of the arrays "
            f"{digest.hexdigest()[:8]}...); fetch it again."
        )
    return arrays


def check_files(paths: Sequence[pathlib.Path], sha256: Sequence[str]) -> None:
    """Raises DataError unless every file is there and has its published sha256."""
    for path, published in zip(paths, sha256, strict=True):
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        if digest != published:
            raise DataError(
                f"file {str(path)!r} is not the published one (sha256 {digest[:8]}... instead "
                f"of {published[:8]}...); fetch it again."
            )


def read_bytes(path: pathlib.Path) -> bytes:
    """The content of a file; raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"file {str(path)!r} cannot be read ({error.strerror}); put the original there."
        ) from error


def read_npz(path: pathlib.Path, names: Sequence[str]) -> list[np.ndarray]:
    """Reads named arrays of an .npz; raises DataError if the file or a name is not whole."""
    content = io.BytesIO(read_bytes(path))
    try:
        with np.load(content, allow_pickle=False) as stored:
            return [stored[name] for name in names]
    except Exception as error:  # damaged files raise all kinds
        reason = error.args[0] if error.args else type(error).__name__
        raise DataError(
            f"array file {str(path)!r} is not a whole .npz of {', '.join(names)} ({reason}); "
            "fetch or save it again."
        ) from error


def _read(name: str, source: pathlib.Path | None) -> Arrays:
    from benchmarks.lab import original_files, tfds_source  # they import this module

    if source is None:
        return _read_digits() if name == "digits" else tfds_source.read(name)
    inner = (source / name, source / f"{name}.npz")
    source = next((path for path in inner if path.exists()), source)
    origin = f"source {str(source)!r}"
    if not source.exists():
        raise DataError(f"{origin} does not exist; pass {get_spec(name).expects}.")
    if source.suffix == ".npz":
        return check_arrays(name, Arrays(*read_npz(source, Arrays._fields)), origin)
    if name == "digits":
        raise DataError(f"{origin} is of no use for 'digits'; pass no source or an .npz.")
    if name == "cifar10":
        arrays = original_files.read_cifar10(source)
    else:
        paths = [source / file for file in IDX_FILES]
        check_files(paths, get_spec(name).files_sha256)
        arrays = original_files.read_idx_files(paths)
    return check_published(name, arrays, origin)


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
        classes=CLASSES,
    )


def _join(data: Dataset) -> Arrays:
    top_level = get_spec(data.name).top_level
    images = np.concatenate([data.train_images, data.validation_images])
    labels = np.concatenate([data.train_labels, data.validation_labels])
    pixels = [np.rint(x * top_level).astype(np.uint8) for x in (images, data.test_images)]
    return Arrays(pixels[0], labels.astype("u1"), pixels[1], data.test_labels.astype("u1"))


def _read_digits() -> Arrays:
    bunch = require("sklearn.datasets", "benchmarks").load_digits()
    # RandomState, unlike Generator, promises the same stream in every numpy.
    order = np.random.RandomState(0).permutation(len(bunch.target))
    images = bunch.images[order, ..., None].astype(np.uint8)
    labels = bunch.target[order].astype(np.uint8)
    return Arrays(images[297:], labels[297:], images[:297], labels[:297])
