"""Image data sets from every kind of source, and what is said of a damaged one."""

import functools
import gzip
import hashlib
import io
import pathlib
import shutil
import sys
import tarfile
import urllib.error

import numpy as np
import pytest

from benchmarks.lab import data, originals, tfds_source
from benchmarks.lab.originals import Arrays, DataError

REAL = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real files of {name} are not at {REAL / name}")
    return REAL / name


def refused(message):
    return pytest.raises(DataError, match=message)


def make_arrays(train=30, test=10, shape=(28, 28, 1), top_level=255):
    rng = np.random.RandomState(0)
    images = rng.randint(0, top_level + 1, (train + test, *shape)).astype(np.uint8)
    labels = rng.randint(0, 10, train + test).astype(np.uint8)
    return Arrays(images[:train], labels[:train], images[train:], labels[train:])


MNIST, CIFAR = make_arrays(), make_arrays(shape=(32, 32, 3))


def idx_bytes(array, rows=None):
    shape = (rows or len(array), *array.shape[1:])
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(shape, ">u4").tobytes()
    # Without the time of day, which would be in the names of the tests.
    return gzip.compress(header + array.tobytes(), mtime=0)


def npz_bytes(arrays=MNIST, **changes):
    content = io.BytesIO()
    np.savez_compressed(content, **(arrays._asdict() if arrays else {}) | changes)
    return content.getvalue()


def write_idx(folder):
    for file, array in zip(originals.IDX_FILES, MNIST, strict=True):
        (folder / file).write_bytes(idx_bytes(array[..., 0] if array.ndim == 4 else array))
    return [folder / file for file in originals.IDX_FILES]


def batch_bytes(images, labels):
    """A batch as Python 2 pickled it, with protocol 2 and byte strings."""
    planes = images.transpose(0, 3, 1, 2).tobytes()
    shape = b"M" + len(images).to_bytes(2, "little") + b"M\x00\x0c\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01"
        b"%bcnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        b"J\xff\xff\xff\xffK\x00tb\x89T%b%btb"
    ) % (shape, len(planes).to_bytes(4, "little"), planes)
    numbers = b"".join(b"K" + bytes((label,)) for label in labels)
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](" + numbers + b"eu."


def in_batches():
    images = [*np.split(CIFAR.train_images, 5), CIFAR.test_images]
    labels = [*np.split(CIFAR.train_labels, 5), CIFAR.test_labels]
    return zip(originals.BATCHES, images, labels, strict=True)


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        assert np.asarray(one).dtype == np.asarray(other).dtype


def publish(monkeypatch, name, arrays):
    """Makes these arrays the published ones."""
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    monkeypatch.setitem(originals.SHA256, name, digest)


def test_npz_and_idx_files_give_the_same_set_and_its_last_images_validate(
    tmp_path, monkeypatch
):
    path = tmp_path / "mnist.npz"
    path.write_bytes(npz_bytes())
    loaded = data.load("mnist", path, validation=4)
    assert loaded.train_images.shape == (26, 28, 28, 1)
    assert (loaded.train_images.dtype, loaded.train_labels.dtype) == (np.float32, np.int32)
    assert 0 <= loaded.train_images.min() < loaded.train_images.max() <= 1
    np.testing.assert_array_equal(loaded.validation_labels, MNIST.train_labels[-4:])
    assert_same(originals.read_npz(path), MNIST)
    assert_same(data.load("mnist", tmp_path, validation=4), loaded)
    path.unlink()
    write_idx(tmp_path)
    with refused(r"does not hold the published data set 'mnist' \(sha256"):
        data.load("mnist", tmp_path)
    publish(monkeypatch, "mnist", MNIST)
    assert_same(data.load("mnist", tmp_path, validation=4), loaded)


def test_digits_have_16_levels_and_a_fixed_split(tmp_path):
    digits = data.load("digits")
    splits = (digits.train_images, digits.validation_images, digits.test_images)
    assert [len(images) for images in splits] == [1300, 200, 297]
    assert len(np.unique(np.concatenate(splits).reshape(1797, 64), axis=0)) == 1797
    labels = np.concatenate([digits[1], digits[3], digits[5]])
    assert hashlib.sha256(labels.astype(np.uint8)).hexdigest()[:16] == "3cd76ec1da4f9a92"
    arrays = make_arrays(shape=(8, 8, 1), top_level=16)
    (tmp_path / "digits.npz").write_bytes(npz_bytes(arrays))
    loaded = data.load("digits", tmp_path, validation=4)
    np.testing.assert_array_equal(loaded.test_images, arrays.test_images / np.float32(16))


@pytest.mark.parametrize(
    ("name", "source", "validation", "message"),
    [
        ("minst", None, None, "'minst' is not known; name one of digits, mnist,"),
        ("mnist", "nowhere", None, r"source '.*nowhere' does not exist; pass a"),
        ("digits", "", None, "of no use for 'digits'"),
        ("cifar10", "", None, "holds no CIFAR-10; pass a folder"),
        ("mnist", "", None, r"train-images.*' cannot be read as .* \(No such file"),
        *(("digits", None, x, f"is {x}; pass a number above 0 and") for x in (0, -1, 1500)),
    ],
)
def test_bad_arguments_are_named(tmp_path, name, source, validation, message):
    with refused(message):
        data.load(name, None if source is None else tmp_path / source, validation=validation)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_missing_package_names_the_extra(monkeypatch, name):
    for package in ("sklearn.datasets", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    with refused(r"cannot be imported.*`pip install \"optabs\["):
        data.load(name)


def read_batch(path):
    return originals.read_batches(path, [path.read_bytes()] * 6)


IDX, LOAD, DIGITS = (
    functools.partial(originals.read_idx, dimensions=2),
    *(functools.partial(data.load, name) for name in ("mnist", "digits")),
)
SMALL = make_arrays(shape=(8, 8, 1))
FLIPPED = bytes(byte ^ (at == 9000) for at, byte in enumerate(npz_bytes()))
NO_NPZ = r"x' is not a whole \.npz of train_images, train_labels"


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (IDX, b"", r"x' cannot be read as gzipped idx \(ValueError: it begins with nothing"),
        (IDX, b"text", r"gzipped idx \(BadGzipFile"),
        (IDX, idx_bytes(np.zeros((5, 5), np.uint8))[:-9], r"idx \(EOFError"),
        (IDX, idx_bytes(np.zeros(5, np.uint8)), "it begins with 00000801"),
        (IDX, idx_bytes(np.zeros((1, 3), np.uint8), rows=2), "reshape array of size 3"),
        (read_batch, b"", r"data_batch_1' is no CIFAR-10 batch \(EOFError"),
        (read_batch, b"cos\nsystem\n(S'true'\ntR.", r"batch \(UnpicklingError: it names os"),
        (read_batch, b"\x80\x02}.", r"batch \(KeyError"),
        *(
            (originals.read_npz, x, NO_NPZ)
            for x in (npz_bytes()[:-100], FLIPPED, b"", b"text")
        ),
        (originals.read_npz, npz_bytes((), train_images=0), "train_labels is not a file"),
        (LOAD, npz_bytes(SMALL), r"train images uint8 \[30, 8, 8, 1\]"),
        (LOAD, npz_bytes(make_arrays(train=0)), r"train images uint8 \[0, 28, 28, 1\]"),
        (LOAD, npz_bytes(test_images=np.zeros((10, 28, 28, 1))), "test images float64"),
        (LOAD, npz_bytes(test_labels=np.zeros(9, np.uint8)), r"labels \[9\] instead of"),
        (LOAD, npz_bytes(train_labels=np.full((30, 1), 1)), r"labels \[30, 1\] instead of"),
        (LOAD, npz_bytes(train_labels=np.full(30, -1)), "other than the whole numbers 0 to 9"),
        (LOAD, npz_bytes(train_labels=np.full(30, 10)), "other than the whole numbers"),
        (LOAD, npz_bytes(train_labels=np.zeros(30)), "other than the whole numbers"),
        (DIGITS, npz_bytes(SMALL), "pixels above 16"),
    ],
)
def test_damaged_files_and_arrays_that_do_not_fit_are_refused(
    tmp_path, read, content, message
):
    path = tmp_path / ("x.npz" if read in (LOAD, DIGITS) else "x")
    path.write_bytes(content)
    with refused(message):
        read(path)


def test_python_batches_are_read_from_folder_and_archive(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    archive = tmp_path / "other" / "cifar-10-python.tar.gz"
    files = {name: batch_bytes(images, labels) for name, images, labels in in_batches()}
    for place in (folder, archive.parent):
        place.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_tar(archive, {f"{folder.name}/{name}": content for name, content in files.items()})
    with refused("does not hold the published data set 'cifar10'"):
        data.load("cifar10", archive)
    publish(monkeypatch, "cifar10", CIFAR)
    for source in (folder, tmp_path, archive, archive.parent):
        assert_same(originals.read_cifar10(source), CIFAR)
        assert len(data.load("cifar10", source, validation=1).train_labels) == 29
    archive.write_bytes(archive.read_bytes()[:-2000])
    with refused(r"is not a whole \.tar\.gz \(EOFError"):
        originals.read_cifar10(archive)
    write_tar(archive, {})
    with refused("filename 'cifar-10-batches-py/data_batch_1' not found"):
        originals.read_cifar10(archive)


def test_sheets_are_read_row_by_row(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "sheets").mkdir()
    for split, images, rows in (("train", CIFAR[0], 5), ("test", CIFAR[2], 2)):
        grid = images.reshape(rows, -1, 32, 32, 3).swapaxes(1, 2).reshape(rows * 32, -1, 3)
        path = tmp_path / "sheets" / f"{split}_00.webp"
        image_module.fromarray(grid).save(path, lossless=True)
    np.savez(tmp_path / "labels.npz", train=CIFAR.train_labels, test=CIFAR.test_labels)
    assert_same(originals.read_cifar10(tmp_path), CIFAR)
    path.write_bytes(path.read_bytes()[:1000])
    with refused(r"test_00\.webp' is not a whole WebP"):
        originals.read_cifar10(tmp_path)
    path.unlink()
    with refused(r"has no sheets/test_\*\.webp"):
        originals.read_cifar10(tmp_path)


def prepare(name, files, tmp_path, monkeypatch, arrays):
    """Prepares synthetic files as if they were the registered ones."""
    tfds = pytest.importorskip("tensorflow_datasets")
    infos = {
        f"https://example.invalid/{file.name}": tfds.core.download.checksums.UrlInfo(
            file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest(), file.name
        )
        for file in files
    }
    monkeypatch.setattr(tfds.builder_cls(name), "url_infos", infos)
    publish(monkeypatch, name, arrays)

    def read():
        folders = {"data_dir": tmp_path / "tfds", "manual_dir": files[0].parent}
        return tfds_source.read(name, **folders)

    assert_same(read(), arrays)
    return read


def test_tfds_keeps_the_original_order_and_a_copy(tmp_path, monkeypatch):
    read = prepare("mnist", write_idx(tmp_path), tmp_path, monkeypatch, MNIST)
    (copy,) = (tmp_path / "tfds").rglob("arrays.npz")
    copy.write_bytes(copy.read_bytes()[:-10])
    assert_same(read(), MNIST)
    with monkeypatch.context() as patch:
        patch.setattr(tfds_source, "_decode", None)
        assert_same(read(), MNIST)
    tfds, options = pytest.importorskip("tensorflow_datasets"), {"file_format": "array_record"}
    place = {"data_dir": tmp_path / "tfds", "builder_kwargs": options}
    assert len(tfds.data_source("mnist", split="test", **place)) == 10
    copy.unlink()
    next(copy.parent.glob("*.array_record*")).unlink()
    with refused("'mnist' cannot be had through tfds"):
        read()
    info = copy.parent / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with refused(r"File format is already set.*TFDS_DATA_DIR"):
        read()


def test_tfds_prepares_cifar10_from_its_binary_archive(tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    content = {"cifar-10-batches-bin/batches.meta.txt": "\n".join("abcdefghij").encode()}
    for name, images, labels in in_batches():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records = np.concatenate([labels[:, None], planes], axis=1)
        content[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
    write_tar(archive, content)
    prepare("cifar10", [archive], tmp_path, monkeypatch, CIFAR)


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    message = r"'mnist' is not prepared yet and .* cannot be reached \(.*no route.*\); pass"
    for folder in (None, tmp_path):
        with refused(message):
            tfds_source.read("mnist", data_dir=tmp_path, manual_dir=folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["mnist", "fashion_mnist", pytest.param("cifar10", marks=pytest.mark.slow)]
)
def test_the_real_files_are_the_published_ones(name):
    train = 45000 if name == "cifar10" else 55000
    found = [len(each) for each in data.load(name, real(name))[:6]]
    assert found == [train, train, 5000, 5000, 10000, 10000]


def test_flipped_byte_in_a_real_file(tmp_path):
    shutil.copytree(real("mnist"), tmp_path, dirs_exist_ok=True)
    path = tmp_path / originals.IDX_FILES[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with refused(r"train-labels.*' cannot be read as gzipped idx"):
        data.load("mnist", tmp_path)
    with refused("NonMatchingChecksumError"):
        tfds_source.read("mnist", data_dir=tmp_path / "tfds", manual_dir=tmp_path)
    assert not list((tmp_path / "tfds" / "mnist").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tfds_equals_the_real_idx_files(tmp_path, name):
    folder = real(name)
    through_tfds = tfds_source.read(name, data_dir=tmp_path, manual_dir=folder)
    assert_same(through_tfds, originals.read_idx_files(folder))
