"""How a page is put together: one template, one style and the scripts that it asks for, all inside one file.

Nothing is loaded from anywhere: the page's own policy (CSP) forbids it, and lets no other style or script run than the
ones here, whose hashes it names. All text goes through the templates' escaping, data for the scripts through `tojson`,
which leaves no `<` in it.

>>> _hash("")
'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined

from dnnmem import __version__
from dnnmem.cli.render.html.cells import outcome, seconds, size, swatch
from dnnmem.cli.render.palette import look
from dnnmem.cli.render.stack import percent

_HOME = "dnnmem.cli.render.html"


def render(template: str, *, title: str, scripts: Sequence[str] = (), **values: object) -> str:
    """The page of a template: `scripts` are names in `assets`, `values` what the template speaks of."""
    style = _asset("page.css")
    script = "\n".join(_asset(f"{name}.js") for name in ("theme", *scripts))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(title=title, style=style, script=script, policy=policy, version=__version__, **values)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (resources.files(_HOME) / "assets" / name).read_text("utf-8")


def _template(name: str) -> str:
    return (resources.files(_HOME) / "templates" / name).read_text("utf-8")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(outcome=outcome, size=size, duration=seconds, percent=percent, swatch=swatch)
    environment.globals["look"] = look
    return environment
