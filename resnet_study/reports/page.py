"""What all pages share: one file that needs no network, made from the templates in `templates/`.

The scripts, the style, the images and the plots stand in the page. Its security policy forbids the browser to load anything else.
"""

import functools
import re
from pathlib import Path

import jinja2
import markupsafe
from bokeh.embed import components
from bokeh.resources import Resources

from resnet_study.files import write_atomically
from resnet_study.strings import as_text

_TEMPLATES = Path(__file__).parent / "templates"


@functools.cache
def _environment():
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {"number": format_number, "bytes": format_bytes}
    return environment


def format_number(value, digits: int = 2) -> str:
    """A number with separators of thousands; integers without digits behind the point; nothing for None."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def format_bytes(size: int) -> str:
    """ "3.4 MB" or "12 kB"."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def write_page(path: Path, template: str, plots: dict, **facts) -> Path:
    """Writes a page to `path`, see `render_page`; returns `path`."""
    write_atomically(path, as_text(render_page(template, plots, **facts)))
    return path


def render_page(template: str, plots: dict, **facts) -> str:
    """A page as HTML.

    Args:
        template: name of a file in `templates/`.
        plots: {name: Bokeh figure}, in the template `plots[name]`.
        **facts: what else the template shows; text is escaped.
    """
    script, places = components(plots, wrap_script=False) if plots else ("", {})
    # Names of classes and folders come from strangers: none may end the script that it stands in.
    script = re.sub(r"<(?=[/!]|script)", r"\\x3c", script)
    page = _environment().get_template(template)
    style, behaviour = ((_TEMPLATES / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    library = Resources(mode="inline", components=["bokeh"]).render_js() if plots else ""
    return page.render(
        facts,
        plots={name: markupsafe.Markup(place) for name, place in places.items()},
        library=markupsafe.Markup(library),
        plot_script=markupsafe.Markup(script),
        style=markupsafe.Markup(style),
        behaviour=markupsafe.Markup(behaviour),
    )


def render_markdown(text: str) -> markupsafe.Markup:
    """Markdown with tables as HTML. What looks like HTML in it is shown as text."""
    import markdown

    html = markdown.markdown(str(markupsafe.escape(text)).replace("&#34;", '"').replace("&#39;", "'"), extensions=["tables", "sane_lists"])  # fmt: skip
    # Within code Markdown escapes by itself.
    html = re.sub(r"<code>.*?</code>", lambda code: code[0].replace("&amp;", "&"), html, flags=re.DOTALL)
    # The name of a class or a folder may be a link: only those to pages are followed.
    html = re.sub(r'(href|src)="(?!https?:|[^":]*")[^"]*"', r'\1="#"', html)
    return markupsafe.Markup(html)
