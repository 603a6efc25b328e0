"""The images that `--run` learns from, in one small file for a machine without a network.

MNIST is whole. Of CIFAR-10 there are the first 20,000 training and the first 5,000 test
images, in colours of 6 bits: with all 8 they would take twice as much as may be carried.
"""

import io
import pathlib
import tarfile
from collections.abc import Iterator

import numpy as np
import PIL.Image
import typer

from benchmarks.lab.data import arrays_of
from benchmarks.lab.originals import Arrays, DataError, refusing
from benchmarks.lab.records import write_bytes

LIMIT = 40 * 2**20  # bytes
TRAIN, TEST = 20_000, 5_000
BITS = 6  # of a colour
SHEET = (25, 40)  # rows and columns of images
SIDE = 32
MNIST, CIFAR = "mnist.npz", "cifar10"
EXPECTED = "an archive that --archive wrote, or a folder of data"


def write(path: pathlib.Path, source: pathlib.Path | None) -> None:
    """Writes the archive from the data of a folder; None downloads them.

    Raises:
      DataError: data that cannot be read, or that do not fit into LIMIT bytes.
    """
    members = {MNIST: _npz(arrays_of("mnist", source), compressed=True)}
    cifar = arrays_of("cifar10", source)
    train = (cifar.train_images[:TRAIN], cifar.train_labels[:TRAIN])
    chosen = Arrays(*train, cifar.test_images[:TEST], cifar.test_labels[:TEST])
    for split, images in (("train", chosen.train_images), ("test", chosen.test_images)):
        for number, sheet in enumerate(_sheets(images)):
            members[f"{CIFAR}/{split}_{number:02}.webp"] = _webp(sheet)
    none = np.zeros((0, SIDE, SIDE, 3), np.uint8)
    labels = chosen._replace(train_images=none, test_images=none)
    members[f"{CIFAR}/labels.npz"] = _npz(labels, compressed=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    content = packed.getvalue()
    if len(content) > LIMIT:
        raise DataError(
            f"the archive would have {len(content)} bytes, and {LIMIT} may be carried; pass "
            "the published MNIST and CIFAR-10 as data."
        )
    write_bytes(path, content)
    typer.echo(f"archive: {path}, {len(content) / 2**20:.1f} MiB")


def unpacked(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The folder that a study's --data takes: the source or, of an archive, what is in it."""
    if not source.exists():
        raise DataError(f"data {str(source)!r} does not exist; pass {EXPECTED}.")
    if source.is_dir():
        return source
    with refusing(f"data {str(source)!r} cannot be read", f"pass {EXPECTED}"):
        with tarfile.open(source) as archive:
            files = {
                name: file.read()
                for name in archive.getnames()
                if (file := archive.extractfile(name)) is not None
            }
        with np.load(io.BytesIO(files[f"{CIFAR}/labels.npz"])) as stored:
            labels = {name: stored[name] for name in ("train_labels", "test_labels")}
        train, test = (
            np.concatenate([_images(files[name]) for name in sorted(files) if split in name])
            for split in ("train_", "test_")
        )
        first, second = labels.values()
        images = Arrays(train[: len(first)], first, test[: len(second)], second)
        write_bytes(folder / MNIST, files[MNIST])
        write_bytes(folder / f"{CIFAR}.npz", _npz(images, compressed=False))
    return folder


def _npz(arrays: Arrays, *, compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays._asdict())
    return file.getvalue()


def _sheets(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images side by side, which together take fewer bytes; the last sheet may be dark."""
    rows, columns = SHEET
    for start in range(0, len(images), rows * columns):
        part = images[start : start + rows * columns]
        blank = np.zeros((rows * columns - len(part), *images.shape[1:]), np.uint8)
        grid = np.concatenate([part, blank]).reshape(rows, columns, SIDE, SIDE, 3)
        yield grid.transpose(0, 2, 1, 3, 4).reshape(rows * SIDE, columns * SIDE, 3)


def _webp(sheet: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(sheet >> (8 - BITS)).save(file, "webp", lossless=True, quality=75)
    return file.getvalue()


def _images(content: bytes) -> np.ndarray:
    """Of a sheet, from its darkest level, 0, to its lightest, 255."""
    with PIL.Image.open(io.BytesIO(content)) as sheet:
        levels = np.asarray(sheet.convert("RGB")) << (8 - BITS)
    levels |= levels >> BITS
    rows, columns = SHEET
    grid = levels.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, SIDE, SIDE, 3)
