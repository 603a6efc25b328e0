"""Data sets as they were published: what is known of them, and readers of their files."""

import contextlib
import gzip
import hashlib
import importlib
import pathlib
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

CLASSES = 10
# In the order of the fields of Arrays.
IDX_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
CIFAR_FILE = "cifar-10-binary.tar.gz"
BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


class DataError(ValueError):
    """A data set, file or argument that cannot be used, and what to do about it."""


class Arrays(NamedTuple):
    """A data set as it was published: levels of pixels, in the order of the originals."""

    train_images: np.ndarray  # uint8 [n, height, width, channels]
    train_labels: np.ndarray  # uint8 [n]
    test_images: np.ndarray  # uint8 [m, height, width, channels]
    test_labels: np.ndarray  # uint8 [m]


class Spec(NamedTuple):
    """What is known of a data set before it is read."""

    shape: tuple[int, int, int]
    top_level: int = 255  # the level of a pixel that becomes 1.0
    validation: int = 5000


SPECS = {
    "digits": Spec((8, 8, 1), top_level=16, validation=200),
    "mnist": Spec((28, 28, 1)),
    "fashion_mnist": Spec((28, 28, 1)),
    "cifar10": Spec((32, 32, 3)),
}
EXPECTED = "a folder of the original files or an .npz of arrays"
# Of the bytes of the four arrays, as they were published.
SHA256 = {
    "mnist": "06b0d1f124c4e5fa796686ade41a9b778edacc8622f2195a352ef479ad44fc16",
    "fashion_mnist": "ca3ab2a37f845e1b8ae23cab1b51749a3011ba3bf1d9016176d75cbaabac376f",
    "cifar10": "80387ddb9a0edf3fc4a964ee3770296169bb26a651050df20035579673099660",
}


@contextlib.contextmanager
def refusing(problem: str, remedy: str = "fetch it again") -> Iterator[None]:
    """Makes whatever fails inside a DataError: the problem, the reason and the remedy."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # damaged files and tfds raise all kinds
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        reason = reason.partition("\n")[0]
        raise DataError(f"{problem} ({reason}); {remedy}.") from error


def require(module: str, extra: str = "data") -> Any:
    """Imports a package of an extra; raises DataError with how to install it."""
    remedy = f'call `pip install "optabs[{extra}]"`'
    with refusing(f"package {module!r} cannot be imported", remedy):
        return importlib.import_module(module)


def check(name: str, arrays: Arrays, origin: str, *, published: bool = True) -> Arrays:
    """The arrays; raises DataError unless they fit and, where asked, are those published."""
    spec = SPECS[name]
    for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        paired = images.shape == (labels.size, *spec.shape) and labels.ndim == 1
        if images.dtype != np.uint8 or not paired or not labels.size:
            problem = (
                f"{split} images {images.dtype} {list(images.shape)} and labels "
                f"{list(labels.shape)} instead of uint8 {['n', *spec.shape]} and ['n']"
            )
        elif labels.dtype.kind not in "iu" or not 0 <= labels.min() <= labels.max() < CLASSES:
            problem = f"{split} labels other than the whole numbers 0 to {CLASSES - 1}"
        elif images.max() > spec.top_level:
            problem = f"{split} pixels above {spec.top_level}"
        else:
            continue
        raise DataError(f"{origin} has {problem}; for {name!r} pass {EXPECTED}.")
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.uint8).data)
    if published and digest.hexdigest() != SHA256[name]:
        raise DataError(
            f"{origin} does not hold the published data set {name!r} (sha256 of the arrays "
            f"{digest.hexdigest()[:8]}...); fetch it again."
        )
    return arrays


def read_npz(path: pathlib.Path) -> Arrays:
    """Reads the arrays of an .npz, or raises a DataError."""
    problem = f"file {str(path)!r} is not a whole .npz of {', '.join(Arrays._fields)}"
    with refusing(problem), open(path, "rb") as file, np.load(file) as stored:
        return Arrays(*(stored[name] for name in Arrays._fields))


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Reads a gzipped idx file of bytes, of as many dimensions, or raises a DataError."""
    with refusing(f"file {str(path)!r} cannot be read as gzipped idx"):
        content = gzip.decompress(path.read_bytes())
        if content[:4] != bytes((0, 0, 8, dimensions)):
            raise ValueError(f"it begins with {content[:4].hex() or 'nothing'}")
        shape = np.frombuffer(content, ">u4", dimensions, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read(name: str, files: Mapping[str, pathlib.Path]) -> Arrays:
    """Reads a data set from the original files, by their names, or raises a DataError."""
    if name == "cifar10":
        return read_cifar10(files[CIFAR_FILE])
    images, labels, test_images, test_labels = (
        read_idx(files[file], 3 if "images" in file else 1) for file in IDX_FILES
    )
    return Arrays(images[..., None], labels, test_images[..., None], test_labels)


def read_cifar10(archive: pathlib.Path) -> Arrays:
    """Reads CIFAR-10 from its archive of binary batches, or raises a DataError."""
    arrays: list[np.ndarray] = []
    with refusing(f"file {str(archive)!r} is not the whole {CIFAR_FILE}"):
        with tarfile.open(archive, "r:gz") as members:
            contents = {
                pathlib.PurePath(member.name).name: file.read()
                for member in members
                if (file := members.extractfile(member))
            }
        for names in (BATCHES, ["test_batch.bin"]):
            content = b"".join(contents[name] for name in names)
            records = np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
            planes = records[:, 1:].reshape(-1, 3, 32, 32)
            arrays += [planes.transpose(0, 2, 3, 1), records[:, 0]]
    return Arrays(*arrays)
