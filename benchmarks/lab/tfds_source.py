"""Original files fetched and kept by tensorflow-datasets.

tensorflow-datasets is used without TensorFlow: its stock builders need that to unpack the
files, so the builders here unpack them themselves. What they prepare is what the stock
builders prepare, under the same names and in the same order.
"""

import contextlib
import hashlib
import io
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.lab import originals
from benchmarks.lab.originals import SPECS, Arrays, DataError, refusing, require
from benchmarks.lab.records import write_bytes

PROBE_SECONDS = 5.0

Files = dict[str, pathlib.Path]
Examples = Iterator[tuple[int, dict[str, Any]]]


def read(
    name: str, *, data_dir: pathlib.Path | None = None, manual_dir: pathlib.Path | None = None
) -> Arrays:
    """The published arrays in their original order, prepared by tfds the first time.

    They are also kept as `arrays.npz` next to what tfds prepared, because decoding takes
    many times as long as reading that file.

    Args:
      name: "mnist", "fashion_mnist" or "cifar10".
      data_dir: where tfds keeps data sets; None means TFDS_DATA_DIR or tfds' own default.
      manual_dir: a folder with the original files, checked by tfds; None downloads them.

    Raises:
      DataError: a package is missing, or the data set can be neither read nor prepared.
    """
    remedy = f"pass --data with {SPECS[name].expects}"
    problem = f"data set {name!r} cannot be had through tfds"
    with refusing(problem, f"set TFDS_DATA_DIR to another folder or {remedy}"):
        builder = _make_builder(name, data_dir)
        folder = pathlib.Path(builder.data_dir)
        cache, origin = folder / "arrays.npz", f"tfds folder {str(folder)!r}"
        with contextlib.suppress(DataError):  # what is wrong or missing is mended below
            return originals.check(name, Arrays(*originals.read_npz(cache)), origin)
        if not folder.is_dir():
            _prepare(name, builder, manual_dir, remedy)
        arrays = Arrays(*_decode(builder, "train"), *_decode(builder, "test"))
    originals.check(name, arrays, origin)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays._asdict())
    with contextlib.suppress(OSError):  # a folder that cannot be written is slow but useful
        write_bytes(cache, content.getvalue())
    return arrays


def _make_builder(name: str, data_dir: pathlib.Path | None) -> Any:
    """A builder that differs from the stock one in how it unpacks the original files."""
    for package in ("importlib_resources", "array_record", "PIL.Image"):
        require(package)  # tfds would miss them only after the download
    tfds = require("tensorflow_datasets")
    stock = tfds.builder_cls(name)
    generate = _cifar10_examples if name == "cifar10" else _idx_examples

    def split_generators(self: Any, dl_manager: Any) -> dict[str, Iterator[Any]]:
        paths = dl_manager.download({url: url for url in self.url_infos})
        files = {url.rpartition("/")[2]: pathlib.Path(path) for url, path in paths.items()}
        return {split: generate(self, files, split) for split in ("train", "test")}

    members = {
        "name": name,
        "url_infos": stock.url_infos,
        "_split_generators": split_generators,
        "_generate_examples": None,
        "__module__": __name__,
    }
    with tfds.core.registered.skip_registration():
        return type(stock.__name__, (stock,), members)(
            data_dir=data_dir, file_format="array_record"
        )


def _idx_examples(builder: Any, files: Files, split: str) -> Examples:
    images, labels = originals.IDX_FILES[:2] if split == "train" else originals.IDX_FILES[2:]
    return _examples(
        originals.read_idx(files[images], 3), originals.read_idx(files[labels], 1)
    )


def _cifar10_examples(builder: Any, files: Files, split: str) -> Examples:
    batches = originals.BATCHES[:5] if split == "train" else originals.BATCHES[5:]
    names = [*(f"{name}.bin" for name in batches), "batches.meta.txt"]
    (archive,) = files.values()
    *contents, classes = originals.read_archive(archive, "cifar-10-batches-bin/", names)
    builder.info.features["label"].names = classes.decode().split()
    records = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    for index, example in _examples(images, records[:, 0]):
        yield index, {"id": f"{split}_{index:05d}", **example}


def _examples(images: np.ndarray, labels: np.ndarray) -> Examples:
    # Encoding arrays takes TensorFlow; encoding Pillow's images does not.
    encode = require("PIL.Image").fromarray
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": encode(np.ascontiguousarray(image)), "label": int(label)}


def _prepare(name: str, builder: Any, manual_dir: pathlib.Path | None, remedy: str) -> None:
    tfds = require("tensorflow_datasets")
    for url, info in builder.url_infos.items():
        if manual_dir is None or not (manual_dir / info.filename).is_file():
            # Soon: tfds would try for minutes to reach a host.
            request = urllib.request.Request(url, method="HEAD")
            problem = f"data set {name!r} is not prepared yet and {request.host}"
            # A host that answers with an error is there: let tfds say what is wrong.
            answered = contextlib.suppress(urllib.error.HTTPError)
            with refusing(f"{problem} cannot be reached", remedy), answered:
                urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)


def _decode(builder: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of a prepared split, in the order of the original files."""
    tfds = require("tensorflow_datasets")
    open_image = require("PIL.Image").open
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    count = len(source)
    # tfds sorts by the md5 of the split and the key, and the keys count from 0.
    order = sorted(
        range(count), key=lambda key: hashlib.md5(f"{split}{key}".encode()).digest()
    )
    images = np.empty((count, *builder.info.features["image"].shape), np.uint8)
    labels = np.empty(count, np.uint8)
    for row, example in zip(order, source.__getitems__(list(range(count))), strict=True):
        with open_image(io.BytesIO(example["image"])) as image:
            images[row] = np.asarray(image).reshape(images.shape[1:])
        labels[row] = example["label"]
    return images, labels
