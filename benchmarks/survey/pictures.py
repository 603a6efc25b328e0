"""The survey study's pictures of landscapes: every optimizer's path at its chosen rate."""

import io
import pathlib
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from benchmarks import store
from benchmarks.lab.landscapes import LANDSCAPES
from benchmarks.lab.paths import path, paths_figure
from benchmarks.survey.optimizers import ENTRIES, FAMILIES
from benchmarks.survey.records import Records, label_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Paths = dict[tuple[str, str], tuple[float, np.ndarray]]  # landscape, name: rate and points
FAMILY_PICTURE = ("rosenbrock", "ravine")


def paths_of(records: Records) -> Paths:
    """The path of every record on a landscape, from the landscape's own start."""
    wanted = {key: record for key, record in records.items() if key[0] in LANDSCAPES}
    paths = {}
    for (at, name), record in tqdm(
        wanted.items(), unit="path", dynamic_ncols=True, disable=None, leave=False
    ):
        rate, steps = record["results"]["rate"], record["config"]["steps"]
        points = path(LANDSCAPES[at], ENTRIES[name].optimizer(rate, steps), steps)
        paths[at, name] = rate, points
    return paths


def draw_landscapes(paths: Paths, folder: pathlib.Path) -> None:
    """Writes a picture per landscape, and a small one per family of optimizers."""
    for at in dict.fromkeys(at for at, _ in paths):
        save_png(_landscape_figure(paths, at), folder / f"landscape-{at}.png")
    for family, names in FAMILIES.items():
        places = [at for at in FAMILY_PICTURE if any((at, name) in paths for name in names)]
        if places:
            save_png(_family_figure(paths, family, places), folder / f"family-{family}.png")


def labelled(paths: Paths, at: str, family: str) -> dict[str, np.ndarray]:
    """A family's paths on a landscape, labelled with their rates."""
    return {
        f"{label_of(name)}, rate {paths[at, name][0]:g}": paths[at, name][1]
        for name in FAMILIES[family]
        if (at, name) in paths
    }


def save_png(figure: "Figure", target: pathlib.Path) -> None:
    """Writes a figure of filled contours and long paths, whose SVG would be megabytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    store.write_bytes(target, content.getvalue())


def _landscape_figure(paths: Paths, at: str) -> "Figure":
    from matplotlib.figure import Figure

    families = [family for family in FAMILIES if labelled(paths, at, family)]
    figure = Figure(
        figsize=(14, 8.5) if len(families) > 3 else (14, 4.6), layout="constrained"
    )
    axes = figure.subplots(-(-len(families) // 3), 3, squeeze=False).flat
    for axis in axes[len(families) :]:
        axis.set_axis_off()
    for axis, family in zip(axes, families, strict=False):
        title = family.replace("_", " ")
        paths_figure(LANDSCAPES[at], labelled(paths, at, family), axis=axis, title=title)
    figure.suptitle(
        f"{at.replace('_', ' ')}: {LANDSCAPES[at].source}\n"
        "each path at its chosen rate; circle: start, star: minimum, cross: saddle, dot: end"
    )
    return figure


def _family_figure(paths: Paths, family: str, places: list[str]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    axes = figure.subplots(1, len(places), squeeze=False)[0]
    for axis, at in zip(axes, places, strict=True):
        paths_figure(LANDSCAPES[at], labelled(paths, at, family), axis=axis)
    return figure
