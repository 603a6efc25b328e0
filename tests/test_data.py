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


def idx_bytes(array, rows=None):
    shape = (rows or len(array), *array.shape[1:])
    header = bytes((0, 0, 8, array.ndim)) + np.asarray(shape, ">u4").tobytes()
    # Without the time of day, which would be in the names of the tests.
    return gzip.compress(header + array.tobytes(), mtime=0)


def write_idx(folder, arrays):
    folder.mkdir(exist_ok=True)
    for file, array in zip(originals.IDX_FILES, arrays, strict=True):
        pixels = array[..., 0] if array.ndim == 4 else array
        (folder / file).write_bytes(idx_bytes(pixels))
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


def in_batches(arrays):
    images = [*np.split(arrays.train_images, 5), arrays.test_images]
    labels = [*np.split(arrays.train_labels, 5), arrays.test_labels]
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


@pytest.fixture
def cifar():
    return make_arrays(shape=(32, 32, 3))


# Arrays and their splits.


def test_npz_gives_the_same_set_again_and_its_last_images_validate(tmp_path):
    arrays = make_arrays()
    originals.save_arrays(arrays, tmp_path / "mnist.npz")
    loaded = data.load("mnist", tmp_path / "mnist.npz", validation=4)
    assert loaded.train_images.shape == (26, 28, 28, 1)
    assert loaded.train_images.dtype == np.float32
    assert loaded.train_labels.dtype == np.int32
    assert 0 <= loaded.train_images.min() < loaded.train_images.max() <= 1
    np.testing.assert_array_equal(loaded.validation_labels, arrays.train_labels[-4:])
    assert_same(originals.read_npz(tmp_path / "mnist.npz", Arrays._fields), arrays)
    assert_same(data.load("mnist", tmp_path, validation=4), loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["mnist.npz"]


def test_digits_split_is_fixed_and_disjoint():
    digits = data.load("digits")
    splits = (digits.train_images, digits.validation_images, digits.test_images)
    assert [len(images) for images in splits] == [1300, 200, 297]
    assert len(np.unique(np.concatenate(splits).reshape(1797, 64), axis=0)) == 1797
    labels = np.concatenate([digits[2], digits[4], digits[6]])
    assert hashlib.sha256(labels.astype(np.uint8)).hexdigest()[:16] == "3cd76ec1da4f9a92"


def test_digits_from_a_file_have_16_levels(tmp_path):
    arrays = make_arrays(shape=(8, 8, 1), top_level=16)
    originals.save_arrays(arrays, tmp_path / "digits.npz")
    loaded = data.load("digits", tmp_path, validation=4)
    np.testing.assert_array_equal(loaded.test_images, arrays.test_images / np.float32(16))
    with refused("pixels above 16"):
        originals.check_arrays("digits", make_arrays(shape=(8, 8, 1)), "here")


NO_LABELS = "labels other than the whole numbers 0 to 9"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (make_arrays(shape=(8, 8, 1)), r"train images uint8 \[30, 8, 8, 1\]"),
        ({"test_images": np.zeros((10, 28, 28, 1))}, "test images float64"),
        ({"test_labels": np.zeros(9, np.uint8)}, "10 test images but 9 labels"),
        (make_arrays(train=0), "no train images"),
        ({"train_labels": np.full(30, -1)}, NO_LABELS),
        ({"train_labels": np.full(30, 10)}, NO_LABELS),
        ({"train_labels": np.zeros(30)}, NO_LABELS),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, message):
    arrays = make_arrays()._replace(**arrays) if isinstance(arrays, dict) else arrays
    originals.save_arrays(arrays, tmp_path / "a.npz")
    with refused(message):
        data.load("mnist", tmp_path / "a.npz", validation=4)


def test_bad_arguments_are_named(tmp_path):
    for name, source, validation, message in (
        ("minst", None, None, "'minst' is not known; name one of digits, mnist,"),
        ("mnist", tmp_path / "nowhere", None, r"source '.*nowhere' does not exist; pass a"),
        ("digits", tmp_path, None, "of no use for 'digits'"),
        ("cifar10", tmp_path, None, "holds no CIFAR-10; pass a folder"),
        ("mnist", tmp_path, None, "cannot be read"),
        *(("digits", None, x, f"{x} is not a positive whole") for x in (0, -1, True, 2.5)),
        ("digits", None, 1500, "validation 1500 leaves none of the 1500"),
    ):
        with refused(message):
            data.load(name, source, validation=validation)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10"])
def test_missing_package_names_the_extra(monkeypatch, name):
    for package in ("sklearn.datasets", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    with refused(r"cannot be imported.*`pip install \"optabs\["):
        data.load(name)


def test_save_refuses_what_load_would_not_find(tmp_path):
    with refused(r"does not end in \.npz"):
        originals.save_arrays(make_arrays(), tmp_path / "a.bin")
    (tmp_path / "file").touch()
    with refused("cannot be written"):
        originals.save_arrays(make_arrays(), tmp_path / "file" / "a.npz")


def test_damaged_npz_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    originals.save_arrays(make_arrays(), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for content in (whole[:-100], bytes(flipped), b"", b"text"):
        path.write_bytes(content)
        with refused(r"not a whole \.npz of train_images, train_labels"):
            data.load("mnist", path)
    np.savez(path, train_images=make_arrays().train_images)
    with refused("train_labels is not a file in the archive"):
        data.load("mnist", path)


# The original files.


def test_idx_files_are_read_and_unpublished_ones_refused(tmp_path, monkeypatch):
    arrays = make_arrays()
    digests = [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in write_idx(tmp_path, arrays)
    ]
    with pytest.raises(DataError, match=r"ubyte\.gz' is not the published one \(sha256"):
        data.load("mnist", tmp_path)
    spec = originals.SPECS["mnist"]._replace(files_sha256=tuple(digests))
    monkeypatch.setitem(originals.SPECS, "mnist", spec)
    assert_same(originals.read_idx_files("mnist", tmp_path), arrays)
    with refused("does not hold the published data set 'mnist'"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"text", "not a whole gzip file"),
        (idx_bytes(np.zeros((5, 5), np.uint8))[:-9], "not a whole gzip file"),
        (idx_bytes(np.zeros(5, np.uint8)), "begins with 00000801, not the idx magic number"),
        (idx_bytes(np.zeros((1, 3), np.uint8), rows=2), "holds 3 values, not the 6"),
    ],
)
def test_damaged_idx_is_refused(tmp_path, content, message):
    (tmp_path / "x.gz").write_bytes(content)
    with refused(message):
        originals.read_idx(tmp_path / "x.gz", 2)


def test_python_batches_are_read_from_folder_and_archive(tmp_path, cifar):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = {name: batch_bytes(images, labels) for name, images, labels in in_batches(cifar)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    archive = tmp_path / "other" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    write_tar(archive, {f"{folder.name}/{name}": content for name, content in files.items()})
    for source in (folder, tmp_path, archive, archive.parent):
        assert_same(originals.read_cifar10(source), cifar)
    with refused("does not hold the published data set 'cifar10'"):
        data.load("cifar10", archive)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with refused(r"is not a whole \.tar\.gz"):
        originals.read_cifar10(archive)
    write_tar(archive, {})
    with refused("has no file 'cifar-10-batches-py/data_batch_1'"):
        originals.read_cifar10(archive)


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02}."])
def test_other_pickles_are_refused(tmp_path, content):
    with pytest.raises(DataError, match=r"is no CIFAR-10 batch \("):
        originals.read_batches(tmp_path, [content] * 6)


def test_sheets_are_read_row_by_row(tmp_path, cifar):
    image_module = pytest.importorskip("PIL.Image")
    (tmp_path / "sheets").mkdir()
    for split, images, rows in (("train", cifar[0], 5), ("test", cifar[2], 2)):
        grid = images.reshape(rows, -1, 32, 32, 3).swapaxes(1, 2).reshape(rows * 32, -1, 3)
        path = tmp_path / "sheets" / f"{split}_00.webp"
        image_module.fromarray(grid).save(path, lossless=True)
    np.savez(tmp_path / "labels.npz", train=cifar.train_labels, test=cifar.test_labels)
    assert_same(originals.read_cifar10(tmp_path), cifar)
    path.write_bytes(path.read_bytes()[:1000])
    with refused(r"test_00\.webp' is not a whole WebP"):
        originals.read_cifar10(tmp_path)
    path.unlink()
    with refused(r"has no test_\*\.webp"):
        originals.read_cifar10(tmp_path)


# Through tensorflow-datasets.


def url_infos(tfds, url, files):
    return {
        url + file.name: tfds.core.download.checksums.UrlInfo(
            size=file.stat().st_size,
            checksum=hashlib.sha256(file.read_bytes()).hexdigest(),
            filename=file.name,
        )
        for file in files
    }


def prepare(name, stock, files, tmp_path, monkeypatch, arrays):
    """Prepares synthetic files as if they were the registered ones."""
    tfds = pytest.importorskip("tensorflow_datasets")
    infos = url_infos(tfds, "https://example.invalid/", files)
    monkeypatch.setattr(getattr(tfds.image_classification, stock), "url_infos", infos)
    digest = hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()
    spec = originals.SPECS[name]._replace(arrays_sha256=digest)
    monkeypatch.setitem(originals.SPECS, name, spec)

    def read():
        folders = {"data_dir": tmp_path / "tfds", "manual_dir": files[0].parent}
        return tfds_source.read(name, **folders)

    assert_same(read(), arrays)
    return read


def test_tfds_keeps_the_original_order_and_a_copy(tmp_path, monkeypatch):
    arrays = make_arrays()
    files = write_idx(tmp_path / "idx", arrays)
    read = prepare("mnist", "MNIST", files, tmp_path, monkeypatch, arrays)
    (copy,) = (tmp_path / "tfds").rglob("arrays.npz")
    copy.write_bytes(copy.read_bytes()[:-10])
    assert_same(read(), arrays)
    with monkeypatch.context() as patch:
        patch.setattr(tfds_source, "_decode", None)
        assert_same(read(), arrays)
    tfds = pytest.importorskip("tensorflow_datasets")
    stock = tfds.data_source(
        "mnist",
        split="test",
        data_dir=tmp_path / "tfds",
        builder_kwargs={"file_format": "array_record"},
    )
    assert len(stock) == 10
    copy.unlink()
    next(copy.parent.glob("*.array_record*")).unlink()
    with refused("'mnist' cannot be had through tfds"):
        read()
    info = copy.parent / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with refused(r"File format is already set.*TFDS_DATA_DIR"):
        read()


def test_tfds_prepares_cifar10_from_its_binary_archive(tmp_path, monkeypatch, cifar):
    archive = tmp_path / "in" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    content = {"cifar-10-batches-bin/batches.meta.txt": "\n".join("abcdefghij").encode()}
    for name, images, labels in in_batches(cifar):
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        records = np.concatenate([labels[:, None], planes], axis=1)
        content[f"cifar-10-batches-bin/{name}.bin"] = records.tobytes()
    write_tar(archive, content)
    prepare("cifar10", "Cifar10", [archive], tmp_path, monkeypatch, cifar)


def test_no_network_is_said_at_once(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    message = r"'mnist' is not prepared yet and storage.* cannot be reached \(no route\); pass"
    with refused(message):
        tfds_source.read("mnist", data_dir=tmp_path)
    with refused(message):
        tfds_source.read("mnist", data_dir=tmp_path, manual_dir=tmp_path)
    assert not list(tmp_path.iterdir())


# The real files.


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_idx_files(name):
    loaded = data.load(name, real(name))
    assert [len(x) for x in loaded[1:7]] == [55000, 55000, 5000, 5000, 10000, 10000]


def test_flipped_byte_in_a_real_file(tmp_path):
    for file in real("mnist").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    path = tmp_path / originals.IDX_FILES[1]
    content = bytearray(path.read_bytes())
    content[5] ^= 1  # the time in the gzip header, which no check of gzip covers
    path.write_bytes(content)
    with refused(r"train-labels.* is not the published one"):
        data.load("mnist", tmp_path)
    with refused("NonMatchingChecksumError"):
        tfds_source.read("mnist", data_dir=tmp_path / "tfds", manual_dir=tmp_path)
    assert not list((tmp_path / "tfds" / "mnist").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_tfds_equals_the_real_idx_files(tmp_path, name):
    folder = real(name)
    through_tfds = tfds_source.read(name, data_dir=tmp_path, manual_dir=folder)
    assert_same(through_tfds, originals.read_idx_files(name, folder))


@pytest.mark.slow
def test_real_sheets():
    loaded = data.load("cifar10", real("cifar10"))
    assert [len(x) for x in loaded[1:7]] == [45000, 45000, 5000, 5000, 10000, 10000]
