"""Fill the Jinja templates of pages and texts, which lie beside the modules that use them."""

from typing import Any

import jinja2

from mlff_student.core.paths import PACKAGE


def render(template: str, **values: Any) -> str:
    """Return the text of a template with its values.

    Values in HTML templates are escaped. A name in the template without a value raises an error.

    Parameters
    ----------
    template : str
        Path of the template in the package, such as "validation/report.html.j2".
    **values : Any
        Values by their names in the template.

    Returns
    -------
    str
        The filled text.

    Raises
    ------
    jinja2.UndefinedError
        If a value is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([PACKAGE / "reporting", PACKAGE]),
        autoescape=jinja2.select_autoescape(["html.j2"], default=False),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
