"""Image data sets from every kind of source, and what is said of a damaged one."""

import functools
import gzip
import hashlib
import http.server
import io
import pathlib
import runpy
import sys
import tarfile
import threading

import chex
import numpy as np
import pytest

from benchmarks.lab import data, originals

REAL = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES, TAR = originals.IDX_FILES[0], originals.CIFAR_FILE


def refused(message):
    return pytest.raises(originals.DataError, match=message)


def make_arrays(train=30, shape=(28, 28, 1), top_level=255):
    rng = np.random.RandomState(0)
    images = rng.randint(0, top_level + 1, (train + 10, *shape)).astype(np.uint8)
    labels = rng.randint(0, 10, train + 10).astype(np.uint8)
    return originals.Arrays(images[:train], labels[:train], images[train:], labels[train:])


MNIST, CIFAR = make_arrays(), make_arrays(shape=(32, 32, 3))
SMALL, DIGITS = (make_arrays(shape=(8, 8, 1), top_level=top) for top in (255, 16))


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    # Here and below without the time of day, which would be in the names of the tests.
    return gzip.compress(header + array.tobytes(), mtime=0)


def npz(arrays=None, **changes):
    content = io.BytesIO()
    np.savez_compressed(content, **(arrays._asdict() if arrays else {}) | changes)
    return content.getvalue()


def tar(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, each in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(each)
            archive.addfile(member, io.BytesIO(each))
    return gzip.compress(content.getvalue(), mtime=0)


def batch(images, labels):
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([labels[:, None], planes], axis=1).tobytes()


FLAT = [array.reshape(array.shape[:3]) for array in MNIST]
PARTS = zip(*(np.split(array, 5) for array in CIFAR[:2]), strict=True)
BATCHES = dict(zip(originals.BATCHES, (batch(*part) for part in PARTS), strict=True))
# The test batch first: it is the name that counts.
BINARY = tar({"readme.html": b"", "test_batch.bin": batch(*CIFAR[2:])} | BATCHES)
FILES = {
    "mnist": dict(zip(originals.IDX_FILES, map(idx, FLAT), strict=True)),
    "cifar10": {TAR: BINARY},
}


def write(folder, files):
    for file, content in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content)


@pytest.fixture(params=FILES)
def published(request, tmp_path, monkeypatch):
    """Original files in a folder, where their arrays are the published ones."""
    name, arrays = request.param, MNIST if request.param == "mnist" else CIFAR
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    monkeypatch.setitem(originals.SHA256, name, digest)
    write(tmp_path, FILES[name])
    return name, arrays, FILES[name]


def test_originals_and_npz_give_the_same_set(tmp_path, monkeypatch, published):
    name, arrays, _ = published
    loaded = data.load(name, tmp_path, validation=4)
    np.testing.assert_array_equal(loaded.train_images, arrays[0][:-4] / np.float32(255))
    assert (loaded.train_images.dtype, loaded.train_labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(loaded.validation_labels, arrays.train_labels[-4:])
    path = tmp_path / "other" / f"{name}.npz"
    write(tmp_path, {path: npz(arrays)})
    for source in (path, path.parent):
        chex.assert_trees_all_equal(data.load(name, source, validation=4), loaded, strict=True)


def test_digits_have_16_levels_and_a_fixed_split(tmp_path):
    digits = data.load("digits")
    splits = (digits.train_images, digits.validation_images, digits.test_images)
    assert [len(images) for images in splits] == [1300, 200, 297]
    assert len(np.unique(np.concatenate(splits).reshape(1797, 64), axis=0)) == 1797
    labels = np.concatenate([digits[1], digits[3], digits[5]])
    assert hashlib.sha256(labels.astype(np.uint8)).hexdigest()[:16] == "3cd76ec1da4f9a92"
    write(tmp_path, {"digits.npz": npz(DIGITS)})
    loaded = data.load("digits", tmp_path, validation=4)
    np.testing.assert_array_equal(loaded.test_images, DIGITS.test_images / np.float32(16))


WHOLE = npz(MNIST)
FLIPPED = bytes(byte ^ (at == 9000) for at, byte in enumerate(WHOLE))
SHORT = gzip.compress(gzip.decompress(idx(FLAT[0]))[:-4], mtime=0)
NO_IDX, NO_TAR = rf"{IMAGES}' cannot be read as gzipped idx ", f"is not the whole {TAR} "
NO_NPZ = r"mnist.npz' is not a whole \.npz of train_images, train_labels"
INTEGERS = "train labels other than the whole numbers 0 to 9"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("idx.gz", b"", rf"{NO_IDX}\(No such file"),
        (IMAGES, b"", rf"{NO_IDX}\(ValueError: it begins with nothing"),
        (IMAGES, b"text", rf"{NO_IDX}\(BadGzipFile"),
        (IMAGES, idx(FLAT[0])[:-9], rf"{NO_IDX}\(EOFError"),
        (IMAGES, idx(FLAT[1]), rf"{NO_IDX}\(ValueError: it begins with 00000801"),
        (IMAGES, SHORT, rf"{NO_IDX}\(ValueError: cannot reshape array of size 23516"),
        ("cifar10/x", b"", rf"{NO_TAR}\(No such file"),
        (f"cifar10/{TAR}", b"", rf"{NO_TAR}\(ReadError"),
        (f"cifar10/{TAR}", BINARY[:-99], rf"{NO_TAR}\(EOFError"),
        (f"cifar10/{TAR}", BINARY, r"does not hold the published .* 'cifar10' \(sha256"),
        (f"cifar10/{TAR}", tar({}), rf"{NO_TAR}\(KeyError: 'data_batch_1"),
        (IMAGES, idx(FLAT[0]), r"train-labels-.* \(No such file"),
        ("digits/x", b"", "of no use for 'digits'"),
        *(("mnist.npz", x, NO_NPZ) for x in (WHOLE[:-100], FLIPPED, b"", b"text")),
        ("mnist.npz", npz(train_images=0), "train_labels is not a file"),
        ("mnist.npz", npz(SMALL), r"train images uint8 \[30, 8, 8, 1\]"),
        ("mnist.npz", npz(make_arrays(train=0)), r"train images uint8 \[0, 28, 28, 1\]"),
        ("mnist.npz", npz(MNIST, test_images=np.zeros((10, 28, 28, 1))), "images float64"),
        ("mnist.npz", npz(MNIST, test_labels=np.zeros(9, np.uint8)), r"labels \[9\] instead"),
        ("mnist.npz", npz(MNIST, train_labels=np.full((30, 1), 1)), r"labels \[30, 1\] inst"),
        ("mnist.npz", npz(MNIST, train_labels=np.full(30, -1)), INTEGERS),
        ("mnist.npz", npz(MNIST, train_labels=np.full(30, 10)), INTEGERS),
        ("mnist.npz", npz(MNIST, train_labels=np.zeros(30)), INTEGERS),
        ("digits.npz", npz(SMALL), "train pixels above 16"),
    ],
)
def test_damaged_files_and_arrays_that_do_not_fit_are_refused(
    tmp_path, file, content, message
):
    write(tmp_path, {file: content})
    name = next((name for name in originals.SPECS if name in file), "mnist")
    with refused(message):
        data.load(name, tmp_path)


def test_bad_arguments_and_missing_packages_are_named(tmp_path, monkeypatch):
    with refused("'minst' is not known; name one of digits, mnist,"):
        data.load("minst")
    with refused(r"source '.*nowhere' does not exist; pass a"):
        data.load("mnist", tmp_path / "nowhere")
    for count in (0, -1, 1500):
        with refused(f"is {count}; pass a number above 0 and below 1500"):
            data.load("digits", validation=count)
    for package in ("sklearn.datasets", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("digits", "mnist", "cifar10"):
        with refused(r"cannot be imported.*`pip install \"optabs\["):
            data.load(name)


@pytest.mark.slow
def test_files_are_fetched_once_through_tfds_without_tensorflow(
    tmp_path, monkeypatch, published
):
    tfds = pytest.importorskip("tensorflow_datasets")
    name, _, files = published
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        infos = {
            f"http://127.0.0.1:{server.server_port}/{file}":
            tfds.core.download.checksums.UrlInfo(
                len(content), hashlib.sha256(content).hexdigest(), file
            )
            for file, content in files.items()
        }  # fmt: skip
        monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)
        write(tmp_path, {file: content + b"x" for file, content in files.items()})
        with refused(f"'{name}' cannot be had through tfds .NonMatchingChecksumError"):
            data.load(name)
        write(tmp_path, files)
        first = data.load(name, validation=4)
        server.shutdown()
    for source in (None, tmp_path):  # once more, of what was kept
        again = data.load(name, source, validation=4)
        chex.assert_trees_all_equal(again, first, strict=True)
    assert "tensorflow" not in sys.modules
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "new"))
    with refused(rf"'{name}' is not downloaded yet and 127\..* cannot be reached \(.*; set"):
        data.load(name)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", pytest.param("cifar10", marks=pytest.mark.slow)]
)
def test_the_real_files_are_the_published_ones(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real files of {name} are not at {REAL / name}")
    if name == "cifar10":  # there in a form of its own
        splits = runpy.run_path(str(REAL / name / "load_cifar10.py"))["load"]()
        originals.check(name, originals.Arrays(*splits["train"], *splits["test"]), "real")
    else:
        found = [len(each) for each in data.load(name, REAL / name)[:6]]
        assert found == [55000, 55000, 5000, 5000, 10000, 10000]
