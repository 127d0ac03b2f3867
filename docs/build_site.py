"""The pages of docs/ as a site that can be searched: `make docs`, or `python docs/build_site.py [FOLDER]`; extra `docs`.

In a folder of its own it puts the pages and what they link to beside each other as in the repository, writes the reference (a page for
each module, from the docstrings) and the table of all networks, and has MkDocs build the site, strictly: a broken link ends it. Nothing is
fetched from a network, then or when the site is read.
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import griffe
from structure import find_modules

import resnet
from resnet_study.reports.model_list import NOTES, tabulate_models
from resnet_study.reports.tables import table_lines

ROOT = Path(__file__).resolve().parent.parent
_COPIED = ("README.md", "LICENSE", "docs", "results", "benchmarks", "examples", "resnet_study/pretrained")
_GUIDES = {
    "Start": ["README.md", "docs/faq.md", "docs/changelog.md"],
    "Use": ["docs/models.md", "docs/training.md", "docs/own_images.md", "docs/reports.md", "docs/serving.md", "docs/deploy.md"],
    "Machines": ["docs/several_machines.md", "docs/cluster_log.md", "docs/speed.md", "benchmarks/README.md", "docs/reliability.md"],
    "Results": ["docs/results.md", "docs/studies.md", "results/README.md", "model_zoo.md"],
    "The four texts": ["docs/texts/liang.md", "docs/texts/lu_song.md", "docs/texts/flowers.md", "docs/texts/waghmode.md"],
}  # fmt: skip

# What the parts of the reference are called, in their order.
_GROUPS = {
    "": "Top level",
    "resnet_study": "Settings, runs, models",
    "resnet_study.networks": "Networks",
    "resnet_study.data": "Data",
    "resnet_study.training": "Training",
    "resnet_study.reports": "Reports",
    "resnet_study.studies": "Studies",
    "resnet_study.exporting": "Export",
    "resnet_study.serving": "Serving",
    "flowers": "Folders of images (flowers)",
}
# Columns as narrow as their text; lines of code of 90 characters at a width of 1,280 pixels.
_STYLE = ".md-typeset table:not([class]) th { min-width: 0 }\n.md-typeset pre > code { font-size: .75em }\n"
_WIDE = "---\nhide: [toc]\n---\n\n"


class Examples(griffe.Extension):
    """Marks what stands below "Example:" in a docstring as the Python code that it is."""

    def on_object(self, *, obj, **_) -> None:
        text, found, rest = obj.docstring.value.partition("Example:\n") if obj.docstring else ("", "", "")
        if found:
            lines = rest.splitlines()
            size = next((i for i, line in enumerate(lines) if line and not line.startswith("    ")), len(lines))
            code = "\n".join(lines[:size]).rstrip()
            obj.docstring.value = "\n".join([f"{text}Example:\n    ```python\n{code}\n    ```\n", *lines[size:]])


def list_builders() -> str:
    """The builders of `resnet` that its page would not show, for their docstrings are made when it is imported."""
    builders = {name: getattr(resnet, name) for name in resnet.__all__ if name.startswith("build_resnet") and name != "build_resnet"}  # fmt: skip
    rows = [[f"`resnet.{name}`", inspect.getdoc(builder).splitlines()[0]] for name, builder in builders.items()]
    note = "They take the arguments of `build_resnet`, see below, but for depth and form; those of `build_resnet9` are in [its module](resnet_study.networks.resnet9.md)."
    table = "\n".join(table_lines(["builder", "what it does"], "ll", rows))
    return f"## Builders by name\n\n{table}\n\n{note}\n\n## Module\n\n"


def write_reference(pages: Path) -> dict[str, list]:
    """A page for each module. Returns them by group, as MkDocs takes them."""
    found = {group: [] for group in _GROUPS.values()}
    for name in find_modules(ROOT):
        page = pages / "reference" / f"{name}.md"
        page.parent.mkdir(exist_ok=True)
        wide, builders = (_WIDE, list_builders()) if name == "resnet" else ("", "")
        page.write_text(f"{wide}# {name}\n\n{builders}::: {name}\n", encoding="utf-8")
        package, _, short = name.rpartition(".")
        found.setdefault(_GROUPS.get(package, package), []).append({short: f"reference/{page.name}"})
    return found


def write_zoo(pages: Path) -> None:
    """The table of `--mode=models`."""
    table = tabulate_models()
    rows = [[f"{cell:.2f}" if isinstance(cell, float) and cell == cell else "" if cell != cell else cell for cell in row] for row in table.values.tolist()]  # fmt: skip
    note = (
        "The shipped weights are those of one run, seed 0; [Results](docs/results.md) also has the mean of several seeds and runs with "
        "images held out, whose errors differ by some tenths. [Which run each file is from](resnet_study/pretrained/README.md)."
    )
    header = [*list(table)[:-1], "what it is"]
    lines = [
        *(f"- {text}" for text in (*NOTES, note)),
        "",
        *table_lines(header, "l" + "r" * (len(header) - 2) + "l", rows),
    ]
    (pages / "model_zoo.md").write_text("\n".join([f"{_WIDE}# Model zoo\n", *lines, ""]), encoding="utf-8")


def describe_site(pages: Path, site: Path, reference: dict) -> dict:
    """The settings of MkDocs; JSON is YAML."""
    notebooks = [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.ipynb"))]
    python = {
        "paths": [str(ROOT)],
        "options": {
            "docstring_style": "google",
            "show_root_heading": False,
            "show_root_toc_entry": False,
            "members_order": "source",
            "filters": ["!^_"],
            "separate_signature": True,
            "docstring_options": {"warn_missing_types": False, "warn_unknown_params": False},
            "extensions": [f"{__file__}:Examples"],
        },
    }
    return {
        "site_name": "resnet-study",
        "extra_css": ["site.css"],
        "docs_dir": str(pages),
        "site_dir": str(site),
        "use_directory_urls": False,  # the site can be read from a disk
        "theme": {"name": "material", "font": False, "features": ["navigation.indexes", "navigation.top", "toc.follow", "content.code.copy"],
                  "palette": [{"media": f"(prefers-color-scheme: {scheme})", "scheme": name, "primary": "indigo"} for scheme, name in (("light", "default"), ("dark", "slate"))]},
        "plugins": ["search", {"mkdocs-jupyter": {"execute": False, "cache": False}}, {"mkdocstrings": {"handlers": {"python": python}}}],
        "markdown_extensions": ["tables", "sane_lists", "admonition", "pymdownx.highlight", "pymdownx.superfences", {"toc": {"permalink": True}}],
        "validation": {"links": {"anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"}},
        "not_in_nav": "\n".join(["results/*/*.md", "resnet_study/pretrained/README.md"]),
        "nav": [*({heading: files} for heading, files in _GUIDES.items()), {"Notebooks": notebooks}, {"Contribute": ["docs/contributing.md"]},
                {"Reference": [{package: files} for package, files in reference.items()]}],
    }  # fmt: skip


def main(site: Path = ROOT / "build" / "site") -> int:
    """Builds the site. Returns the exit code of MkDocs, or 2 for a folder that holds something else, which MkDocs would delete."""
    if site.is_dir() and any(site.iterdir()) and not (site / "sitemap.xml").is_file():
        print(f"error: {site} must be empty or hold a site, received other files; give another folder", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        pages = Path(folder) / "pages"
        for name in _COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name,
                    pages / name,
                    ignore=shutil.ignore_patterns("*.py", "*.keras", "runs", "__pycache__", ".lock"),
                )
            else:
                pages.mkdir(exist_ok=True)
                shutil.copy(ROOT / name, pages / name)
        write_zoo(pages)
        (pages / "site.css").write_text(_STYLE, encoding="utf-8")
        settings = Path(folder) / "mkdocs.yml"
        settings.write_text(json.dumps(describe_site(pages, site.resolve(), write_reference(pages))), encoding="utf-8")
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", settings]
        done = subprocess.run(command, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"})  # no advertisement of Material
    if not done.returncode:
        print(f"written: {site}/index.html; its search needs a server: python -m http.server --directory {site}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
