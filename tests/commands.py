"""Command lines of the benchmarks, called in this process."""

import gzip
import pathlib
import shutil
import sys
from typing import Any

import pytest

from benchmarks import __main__ as command_line
from benchmarks.lab import records, report

RESULTS = pathlib.Path(command_line.__file__).parent / "results"


def call(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    """Runs a command line; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["benchmarks", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    return int(stopped.value.code or 0)


def interrupt(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int,
    error: BaseException | type[BaseException] = KeyboardInterrupt,
) -> list[Any]:  # fmt: skip
    """Raises in the given call of a function; returns its growing list of calls."""
    original, calls = getattr(owner, name), []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == at:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, name, interrupted)
    return calls


def assert_refused(
    line: str,
    sentence: str,
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A bad command line ends in one sentence and exit code 2, and writes no file."""
    out = "" if "--out" in line else f" --out {folder}"
    assert call(monkeypatch, line + out) == 2
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert sentence in message
    assert message.count("\n") == 1
    assert not [path for path in folder.rglob("*") if path.is_file()]


def assert_reported(
    line: str, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, results: str = ""
) -> None:
    """The committed records give the committed text again, byte for byte, and themselves.

    Of the records it is their text: how a compressor packs it differs by Python's version.
    The same pictures are drawn, but not rendered, which takes most of the time. What was
    written by hand stays.
    """
    committed = RESULTS / (results or line.split()[0])
    for path in (committed / records.FILE, committed / "README.md"):
        shutil.copy(path, folder)
    monkeypatch.setattr(report, "png", lambda figure: b"")
    assert call(monkeypatch, f"{line} --report --out {folder}") == 0
    drawn, pictures = (
        {path.name for path in each.glob("*.png")} for each in (folder, committed)
    )
    assert drawn == pictures
    texts = sorted(committed.glob("*.md"))
    assert texts
    for path in texts:
        assert (folder / path.name).read_text() == path.read_text(), path.name
    kept = records.Records(folder)
    kept.close()
    again, before = (
        gzip.decompress((each / records.FILE).read_bytes()) for each in (folder, committed)
    )
    assert again == before
