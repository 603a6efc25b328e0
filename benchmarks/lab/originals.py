"""Data sets as they were published: what is known of them, and readers of their files."""

import gzip
import hashlib
import importlib
import io
import math
import pathlib
import pickle
import tarfile
import zlib
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
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


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


def get_spec(name: str) -> Spec:
    """What is known of a data set; raises DataError for an unknown name."""
    if name not in SPECS:
        raise DataError(f"data set {name!r} is not known; name one of {', '.join(SPECS)}.")
    return SPECS[name]


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


def save_arrays(arrays: Arrays, path: pathlib.Path) -> None:
    """Writes a compressed .npz, whole or not at all; raises DataError if it cannot be."""
    if path.suffix != ".npz":
        raise DataError(f"array file {str(path)!r} does not end in .npz; rename it.")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays._asdict())
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        reason = getattr(error.__cause__ or error, "strerror", None) or error
        raise DataError(
            f"array file {str(path)!r} cannot be written ({reason}); pass a path that can be."
        ) from error


def read_idx_files(name: str, folder: pathlib.Path) -> Arrays:
    """Reads the four idx files of a data set; images get one channel.

    Raises:
      DataError: a file is missing, or not byte for byte the published one.
    """
    arrays = []
    for file, published in zip(IDX_FILES, get_spec(name).files_sha256, strict=True):
        path = folder / file
        digest = hashlib.sha256(read_bytes(path)).hexdigest()
        if digest != published:
            raise DataError(
                f"file {str(path)!r} is not the published one (sha256 {digest[:8]}... instead "
                f"of {published[:8]}...); fetch it again."
            )
        arrays.append(read_idx(path, 3 if "images" in file else 1))
    return Arrays(arrays[0][..., None], arrays[1], arrays[2][..., None], arrays[3])


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Reads a gzipped idx file of bytes, of as many dimensions; DataError if it is none."""
    try:
        content = gzip.decompress(read_bytes(path))
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"is not a whole gzip file ({error})") from error
    magic, header = bytes((0, 0, 8, dimensions)), 4 + 4 * dimensions
    if content[:4] != magic or len(content) < header:
        found = content[:4].hex() or "nothing"
        raise _damaged(path, f"begins with {found}, not the idx magic number {magic.hex()}")
    shape = [int(size) for size in np.frombuffer(content, ">u4", dimensions, 4)]
    if (held := len(content) - header) != math.prod(shape):
        raise _damaged(path, f"holds {held} values, not the {math.prod(shape)} of its header")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def read_cifar10(source: pathlib.Path) -> Arrays:
    """Reads CIFAR-10 from WebP sheets, python batches or their archive, or a DataError."""
    if (source / "sheets").is_dir():
        return read_sheets(source)
    archive = source if source.is_file() else source / "cifar-10-python.tar.gz"
    if archive.is_file():
        return read_batches(archive, read_archive(archive, "cifar-10-batches-py/", BATCHES))
    for folder in (source, source / "cifar-10-batches-py"):
        if (folder / BATCHES[0]).is_file():
            return read_batches(folder, [read_bytes(folder / name) for name in BATCHES])
    expected = get_spec("cifar10").expects
    raise DataError(f"source {str(source)!r} holds no CIFAR-10; pass {expected}.")


def read_sheets(folder: pathlib.Path) -> Arrays:
    """Reads `sheets/{train,test}_*.webp`, rows of 32x32 images, and their `labels.npz`."""
    labels = read_npz(folder / "labels.npz", ("train", "test"))
    images = []
    for split in ("train", "test"):
        paths = sorted((folder / "sheets").glob(f"{split}_*.webp"))
        if not paths:
            raise _damaged(folder / "sheets", f"has no {split}_*.webp")
        images.append(np.concatenate([_read_sheet(path) for path in paths]))
    return Arrays(images[0], labels[0], images[1], labels[1])


def _read_sheet(path: pathlib.Path) -> np.ndarray:
    try:
        with require("PIL.Image").open(path) as file:
            sheet = np.asarray(file.convert("RGB"))
        tiles = sheet.reshape(len(sheet) // 32, 32, sheet.shape[1] // 32, 32, 3)
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise _damaged(path, f"is not a whole WebP of 32x32 images ({error})") from error
    return tiles.swapaxes(1, 2).reshape(-1, 32, 32, 3)


def read_archive(path: pathlib.Path, folder: str, names: Sequence[str]) -> list[bytes]:
    """Contents of files of a .tar.gz; raises DataError if one of them is not whole."""
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            # In the order of the archive: seeking back would unpack it again.
            for member in archive:
                if member.name.startswith(folder) and (file := archive.extractfile(member)):
                    contents[member.name.removeprefix(folder)] = file.read()
        return [contents[name] for name in names]
    except KeyError as error:
        raise _damaged(path, f"has no file {folder + error.args[0]!r}") from None
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise _damaged(path, f"is not a whole .tar.gz ({error})") from error


class _BatchUnpickler(pickle.Unpickler):
    """Rebuilds plain arrays only: any other pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("numpy") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_batches(origin: pathlib.Path, contents: Sequence[bytes]) -> Arrays:
    """Decodes the six pickled python batches, the test batch last."""
    images, labels = [], []
    for name, content in zip(BATCHES, contents, strict=True):
        try:
            batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
            planes = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
            labels.append(np.asarray(batch[b"labels"], np.uint8))
        except Exception as error:  # damaged pickles raise all kinds
            raise _damaged(origin / name, f"is no CIFAR-10 batch ({error})") from error
        images.append(planes.transpose(0, 2, 3, 1))
    return Arrays(np.concatenate(images[:5]), np.concatenate(labels[:5]), images[5], labels[5])


def _damaged(path: pathlib.Path, problem: str) -> DataError:
    return DataError(f"file {str(path)!r} {problem}; fetch it again.")
