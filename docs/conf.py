"""How Sphinx builds the documentation. Built with -n -W: a reference that leads nowhere is an error.

A public name has one place in the reference, and it is never the module it happens to be written in: errors and events
stand on their own pages, everything else under `pgconcert`. The two hooks below say so to autodoc and to links.
"""

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from pgconcert import __version__

project = "pgconcert"
author = "The pgconcert developers"
copyright = "2026, The pgconcert developers"  # noqa: A001 - Sphinx reads this name
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "pgconcert"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True

# Names of other projects are not looked up, so that the build needs no network. Ours must all be found, but for type
# variables, which are nobody's business.
nitpick_ignore_regex = [("py:.*", r"(?!pgconcert\b).*"), ("py:class", r"pgconcert\.[\w.]+\.[A-Z](_co)?")]
# What connections of other libraries can do: protocols of the signatures, which nobody uses by name.
nitpick_ignore_regex += [("py:class", r"pgconcert\.transaction\.(connections|running)\.\w+")]
# Unions of what is taken, each with a name of its own.
nitpick_ignore_regex += [("py:class", r"pgconcert\.values\.\w+")]

OWN_PAGE = ("pgconcert.errors", "pgconcert.events")


def leave_to_own_page(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Keep errors and events, which `pgconcert` exports too, off its page."""
    elsewhere = str(getattr(obj, "__module__", "")).startswith(OWN_PAGE)
    return True if elsewhere and app.env.docname == "reference/pgconcert" else None


def find_public_place(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.TextElement
) -> nodes.reference | None:
    """Lead `pgconcert.hold.AsyncHold`, as an annotation writes it, to where `AsyncHold` is documented."""
    target: str = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("pgconcert."):
        return None
    domain = env.get_domain("py")
    for module in ("pgconcert", *OWN_PAGE):
        place = f"{module}.{target.rpartition('.')[2]}"
        found = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", place, node, contnode)
        if found is not None:
            return found
    return None


def setup(app: Sphinx) -> None:
    """Register the hooks with Sphinx."""
    app.connect("autodoc-skip-member", leave_to_own_page)
    app.connect("missing-reference", find_public_place)
