"""Pages and texts from Jinja templates, which lie beside the modules that fill them."""

from typing import Any

import jinja2

from mlff_student.core.paths import PACKAGE


def render(template: str, **values: Any) -> str:
    """A template of the package by its path in it; HTML is escaped, and an unknown name raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([PACKAGE / "reporting", PACKAGE]),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
