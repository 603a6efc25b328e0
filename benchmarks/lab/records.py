"""The records of a study: one file, `records.jsonl.gz`, with one line a run.

The first lines hold the environments (versions, device), each once, under a number; a run
names its own by that number. The same records give the same text.
"""

import contextlib
import datetime
import functools
import gzip
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

FILE = "records.jsonl.gz"
PACKAGES = ("optabs", "jax", "jaxlib", "optax", "flax", "numpy", "torch")
DIGITS = 6  # significant digits that a record keeps of a number


class StoreError(OSError):
    """A folder or file of results that cannot be used."""


class Key(NamedTuple):
    """Which line of a study's records is meant; no two lines have the same key."""

    task: str
    arm: str
    setting: str = ""  # what else the task is trained under: a batch size, a schedule
    kind: str = "run"  # or "tuning": the rates that were tried; or another of the study's
    seed: int | None = None  # None: of no seed, or of several together


class Record(NamedTuple):
    """One line."""

    key: Key
    config: Mapping[str, Any]  # what was asked for; another one is another run
    result: Mapping[str, Any]  # rate, measures and curves, by name
    date: str
    environment: Mapping[str, Any]


def record_of(key: Key, config: Mapping[str, Any], result: Mapping[str, Any]) -> Record:
    """A record of what has just been measured."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return Record(key, plain(config), plain(result), now, environment())


@functools.cache
def environment() -> dict[str, Any]:
    """Versions and device."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


class Records:
    """The records in a folder: read at once, and written as they are added.

    Raises:
      StoreError: the folder cannot be written, or its records cannot be read.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.path = folder, folder / FILE
        self._lines = {record.key: record for record in read(folder)}
        self._sorted: list[Record] | None = None
        self._whole = False  # whether the file is known to end with a whole line

    def __iter__(self) -> Iterator[Record]:
        if self._sorted is None:
            self._sorted = sorted(self._lines.values(), key=_order)
        return iter(self._sorted)

    def __len__(self) -> int:
        return len(self._lines)

    def get(self, key: Key) -> Record | None:
        """The record of a key."""
        return self._lines.get(key)

    def select(self, **wanted: Any) -> list[Record]:
        """The records whose key has these fields, as in `select(task="mnist", arm="adam")`."""
        return [
            record
            for record in self
            if all(getattr(record.key, name) == value for name, value in wanted.items())
        ]

    def add(self, record: Record) -> None:
        """Keeps a record, in place of another of its key; it is on the disk on return."""
        self._lines[record.key] = record
        self._sorted = None
        if not self._whole:
            self.close()
            return
        # A file of several gzip members is a gzip file: what is there is not written again.
        self._whole = False
        with _writing(self.path), open(self.path, "ab") as file:
            file.write(_packed(_text([record])))
        self._whole = True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Reads what others wrote, keeps them from writing, and at last closes the records."""
        place = (
            os.open(self.folder, os.O_RDONLY) if fcntl else None
        )  # Windows has no such lock
        try:
            if place is not None:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"another call writes into {str(self.folder)!r}; wait for its end, or pass "
                "another folder as out."
            ) from None
        self._lines, self._sorted = {each.key: each for each in read(self.folder)}, None
        try:
            yield
        finally:
            self.close()
            if place is not None:
                os.close(place)

    def close(self) -> None:
        """Writes all records in their order, so that the same ones give the same text."""
        if self._lines:
            write_bytes(self.path, _packed(_text(list(self))))
            self._whole = True


def read(folder: pathlib.Path) -> list[Record]:
    """The records of a folder; none where it has no file of them.

    A last line that an interruption cut is left out.

    Raises:
      StoreError: the file is not one of records.
    """
    path = folder / FILE
    if not path.exists():
        return []
    environments: dict[int, Any] = {}
    records = []
    try:
        for line in _lines_of(path):
            each = json.loads(line)
            if "environments" in each:
                environments |= {int(n): it for n, it in each["environments"].items()}
                continue
            key = Key(**{name: each[name] for name in Key._fields if name in each})
            env = environments[each["environment"]]
            record = Record(key, each["config"], dict(each["result"]), each["date"], env)
            records.append(record)
        return sorted({record.key: record for record in records}.values(), key=_order)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError,
            zlib.error) as error:  # fmt: skip
        raise StoreError(
            f"{str(path)!r} is no readable file of records ({error}); move it away and call "
            "again."
        ) from error


def _lines_of(path: pathlib.Path) -> Iterator[bytes]:
    with gzip.open(path) as file:
        try:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
        except EOFError:
            return


def _text(records: Sequence[Record]) -> str:
    """Lines of JSON: the environments first, then each record without its defaults."""
    known = sorted({_dumped(record.environment) for record in records})
    number = {text: place for place, text in enumerate(known)}
    first = {str(place): json.loads(text) for place, text in enumerate(known)}
    lines = [_dumped({"environments": first})]
    for record in records:
        key, defaults = record.key._asdict(), Key._field_defaults
        line = {name: key[name] for name in key if key[name] != defaults.get(name, ...)}
        line |= {name: getattr(record, name) for name in ("config", "result", "date")}
        lines.append(_dumped(line | {"environment": number[_dumped(record.environment)]}))
    return "\n".join([*lines, ""])


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def _dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _order(record: Record) -> tuple[Any, ...]:
    task, arm, setting, kind, seed = record.key
    return kind, task, setting, arm, seed is not None, seed or 0


def plain(value: Any) -> Any:
    """As JSON keeps it: lists, plain numbers, and null for one that is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def rounded(values: Any) -> Any:
    """Numbers of any nesting with the digits that a record keeps."""
    array = np.asarray(values, float)
    if array.ndim:
        return [rounded(each) for each in array]
    return float(f"{float(array):.{DIGITS}g}")


def as_floats(values: Any) -> np.ndarray:
    """Numbers of a record, with NaN where it has null."""
    return np.array(values, float)


def prepare_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder, made and seen to be writable, before any time is spent on a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"output folder {str(folder)!r} cannot be written ({error.strerror}); pass a "
            "folder that can be."
        ) from error
    return folder


def opened(
    name: str, out: pathlib.Path | None, *, only_report: bool, quick: bool = False
) -> Records:
    """The records of a study; a report alone needs some.

    By default they are in `runs/NAME`, those of a quick run apart from the others.
    """
    folder = out or pathlib.Path("runs") / (f"{name}-quick" if quick else name)
    records = Records(prepare_folder(folder))
    if only_report and not len(records):
        raise StoreError(
            f"out is {str(records.folder)!r}, without records; call without --report first."
        )
    return records


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or leaves what was there."""
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            partial = pathlib.Path(folder) / path.name
            partial.write_bytes(content)
            os.replace(partial, path)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """Makes an OSError one sentence that names the file."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{str(path)!r} could not be written ({error.strerror}); free some space or pass "
            "another folder, then call again: finished runs are kept."
        ) from error
