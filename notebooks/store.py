"""Runs notebooks and stores their outputs as the pages want them."""

import pathlib
import sys

import nbformat
from nbclient import NotebookClient


def store(path: pathlib.Path) -> None:
    """Runs a notebook in its folder; keeps neither times nor the state of widgets.

    Without that state a reader without a kernel shows the picture beside a widget.
    """
    book = nbformat.read(path, 4)
    NotebookClient(
        book,
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    ).execute()
    book.metadata.language_info = {"name": "python"}
    nbformat.write(book, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        store(pathlib.Path(name))
