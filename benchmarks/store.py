"""Finished runs as files: one JSON each, written whole or not at all."""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import tempfile
from typing import Any

import jax

PACKAGES = ("optabs", "jax", "jaxlib", "optax", "flax", "numpy", "torch")


class StoreError(OSError):
    """A folder or file of results that cannot be used."""


def environment() -> dict[str, Any]:
    """Versions and device, for every record."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": versions,
        "device": f"{device.platform}: {device.device_kind}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


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


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or leaves what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException as error:
        pathlib.Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise StoreError(
                f"{str(path)!r} could not be written ({error.strerror}); free some space or "
                "pass another folder, then call again: finished runs are kept."
            ) from error
        raise


def write_json(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes a record; a number that is not finite becomes null."""
    text = json.dumps(_finite(record), indent=1, allow_nan=False)
    write_bytes(path, (_one_line_lists(text) + "\n").encode())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a record."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r} is not a readable record; move it away and call again."
        ) from error


def read_all(folder: pathlib.Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The records of a folder's folders, by the names of the folder and the file."""
    paths = sorted(folder.glob("*/*.json"))
    return {(path.parent.name, path.stem): read_json(path) for path in paths}


def finished(path: pathlib.Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """The record at the path, if it is there and was made by the same configuration."""
    if not path.exists():
        return None
    record = read_json(path)
    return record if record.get("config") == _finite(config) else None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _one_line_lists(text: str) -> str:
    """Puts each list of plain values on one line, so that a curve is a line of the file."""
    lines: list[str] = []
    open_list: list[str] | None = None
    for line in text.splitlines():
        if open_list is not None:
            open_list.append(line.strip())
            if line.strip().rstrip(",") == "]":
                lines.append(" ".join(open_list))
                open_list = None
        elif line.endswith("["):
            open_list = [line]
        else:
            lines.append(line)
    return "\n".join(lines)
