"""The public names: each has a place in the pages, and each mention of one is a link."""

import re
from collections.abc import Collection
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

import optabs

_LOGGER = logging.getLogger(__name__)


def public_names() -> list[str]:
    """Every callable that optabs exports, and those of its modules."""
    return [
        *_callables(optabs, "optabs", "optabs"),
        *_callables(optabs.losses, "optabs.losses", optabs.losses.__name__),
        *_callables(optabs.features, "optabs.features", optabs.features.__name__),
        *_callables(optabs.genetics, "optabs.genetics", optabs.genetics.__name__),
    ]


def _callables(module: ModuleType, path: str, origin: str) -> list[str]:
    return [
        f"{path}.{name}"
        for name, value in vars(module).items()
        if callable(value)
        and name in getattr(module, "__all__", [name])
        and not name.startswith("_")
        and str(getattr(value, "__module__", "")).startswith(origin)
    ]


def missing_names(documented: Collection[str]) -> list[str]:
    """The public names that the pages do not describe."""
    return [name for name in public_names() if name not in documented]


def link_targets() -> dict[str, str]:
    """The public name that each literal means: itself, or an ending of it."""
    return {
        name.split(".", dropped)[-1]: name
        for name in public_names()
        for dropped in range(name.count(".") + 1)
        # A name such as `ALL` alone says too little.
        if dropped < 2 or not name.startswith("optabs.features.")
    }


def _check_complete(app: Sphinx, env: BuildEnvironment) -> None:
    for name in missing_names(env.domains.python_domain.objects):
        _LOGGER.warning("%s is public but on no page; add an autofunction for it.", name)


class LinkNames(SphinxTransform):
    """Makes a link of every literal that is a public name, called or not."""

    default_priority = 500
    _called = re.compile(r"([\w.]+)(\(.*\))?")

    def apply(self, **kwargs: Any) -> None:
        """Wraps the literals of one page."""
        targets = link_targets()
        for literal in list(self.document.findall(nodes.literal)):
            match = self._called.fullmatch(literal.astext())
            inside = isinstance(literal.parent, nodes.reference | addnodes.pending_xref)
            if inside or match is None or match[1] not in targets:
                continue
            link = addnodes.pending_xref(
                refdomain="py",
                reftype="obj",
                reftarget=targets[match[1]],
                refdoc=self.env.docname,
                refwarn=True,
            )
            literal.replace_self(link)
            link += literal


def setup(app: Sphinx) -> ExtensionMetadata:
    """Checks after reading, links while reading."""
    app.connect("env-check-consistency", _check_complete)
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
