"""Readers of the files in which data sets were published."""

import gzip
import io
import math
import pathlib
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.lab import data
from benchmarks.lab.data import Arrays, DataError, read_bytes, require

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def read_idx_files(paths: Sequence[pathlib.Path]) -> Arrays:
    """Reads the images and labels of training and of testing; images get one channel."""
    arrays = [
        read_idx(path, dimensions)
        for path, dimensions in zip(paths, (3, 1, 3, 1), strict=True)
    ]
    return Arrays(arrays[0][..., None], arrays[1], arrays[2][..., None], arrays[3])


def read_idx(path: pathlib.Path, dimensions: int) -> np.ndarray:
    """Reads a gzipped idx file of bytes: uint8, of as many dimensions.

    Raises:
      DataError: the file is missing, not whole, or of another kind.
    """
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
    """Reads CIFAR-10 from WebP sheets, python batches or their archive.

    Raises:
      DataError: the source is none of these, or a file of it is missing or damaged.
    """
    if (source / "sheets").is_dir():
        return read_sheets(source)
    archive = source if source.is_file() else source / "cifar-10-python.tar.gz"
    if archive.is_file():
        return read_batches(archive, read_archive(archive, "cifar-10-batches-py/", BATCHES))
    for folder in (source, source / "cifar-10-batches-py"):
        if (folder / BATCHES[0]).is_file():
            return read_batches(folder, [read_bytes(folder / name) for name in BATCHES])
    expected = data.get_spec("cifar10").expects
    raise DataError(f"source {str(source)!r} holds no CIFAR-10; pass {expected}.")


def read_sheets(folder: pathlib.Path) -> Arrays:
    """Reads `sheets/{train,test}_*.webp`, rows of 32x32 images, and their `labels.npz`."""
    labels = data.read_npz(folder / "labels.npz", ("train", "test"))
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
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        tiles = sheet.reshape(rows, 32, columns, 32, 3)
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
