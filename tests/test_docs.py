"""What the README, the pages of docs/ and the examples of docstrings promise."""

import ast
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
from conftest import ROOT

import cifar10_main
import flowers.export
import flowers.train
from flowers.settings import FlowerParameters
from hyper_parameters import HyperParameters, from_flags
from resnet_study.command_line import Parser, add_flags

PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = sorted((ROOT / "docs" / "texts").glob("*.md"))
# They download files, need a folder of images, or say much while they train.
NOT_RUN = ("load_cifar", "load_mnist", "load_images", "train")


def find_examples():
    """(name, code) of every "Example:" of a docstring, but for the builders that test_resnet.py runs."""
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("flowers/*.py"), *ROOT.glob("resnet_study/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name in NOT_RUN:
                continue
            _, found, rest = (ast.get_docstring(node) or "").partition("Example:\n")
            if found and (not node.name.startswith("build_") or node.name.endswith("_transfer")):
                lines = itertools.takewhile(lambda line: not line or line.startswith("    "), rest.splitlines())
                yield pytest.param(textwrap.dedent("\n".join(lines)), id=f"{path.stem}.{node.name}")


def find_blocks():
    """(page and number, code) of every Python block of a page that needs no trained run."""
    for page in PAGES:
        for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
            if "runs/" not in code and "Train(" not in code:
                yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert not broken


def test_pages_and_examples_are_found():
    """Without, the tests of them would be left out."""
    assert {page.stem for page in TEXTS} >= {"liang"} and len(PAGES) > 10
    assert len(list(find_blocks())) > 3 and len(list(find_examples())) > 20


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_says_where_everything_is():
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where things are")[2]
    top = [*ROOT.glob("*.py"), *ROOT.glob("*.toml"), *ROOT.glob("*.cfg"), ROOT / "Makefile", ROOT / "LICENSE"]
    folders = [f"{path.parent.name}/" for path in (*ROOT.glob("*/__init__.py"), *ROOT.glob("resnet_study/*/__init__.py"))]  # fmt: skip
    package = [path.stem for path in ROOT.glob("resnet_study/*.py") if path.stem != "__init__"]
    missing = [name for name in (*(path.name for path in top), *folders, *package) if not re.search(rf"[`/]{re.escape(name)}`", table)]  # fmt: skip
    assert not missing


def test_the_first_example_ends_in_a_word(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == "cat\n"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "results.md", *TEXTS], ids=lambda page: page.stem)
def test_the_numbers_of_tables_are_those_of_the_results(page):
    """Every percentage, mean and deviation of a column "here" or "what came out" stands in results/: on the pages that its line links to."""
    rows = [row for path in (ROOT / "results").glob("*.json") for row in json.loads(path.read_text(encoding="utf-8"))]
    told, titles = 0, []
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = line.strip("|").split("|") if line.startswith("|") else []
        titles = cells and (titles or cells)
        linked = re.findall(r"results/([^/)]+)/README", line)
        known = {
            f"{number:.2f}"
            for row in rows
            if not linked or row["run"] in linked
            for number in (row["value"], row["std"])
            if isinstance(number, float)
        }
        measured = [
            cell for title, cell in zip(titles, cells, strict=True) if re.search(r"\bhere\b|\bwhat came out\b", title)
        ]
        for number in re.findall(r"(\d+\.\d\d) [%±]", " ".join(measured)):
            assert number in known, line
            told += 1
    assert told


@pytest.mark.slow
def test_the_site_is_built_and_a_broken_link_is_an_error(tmp_path):
    pytest.importorskip("mkdocs")
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "tests"))

    def build():
        command = [sys.executable, copy / "docs" / "build_site.py", tmp_path / "site"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    done = build()
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix(): path.read_text(encoding="utf-8") for path in tmp_path.glob("site/**/*.html")}  # fmt: skip
    assert (
        "resnet20_preact" in pages["model_zoo.html"] and "Predictor" in pages["reference/resnet_study.predictor.html"]
    )
    assert (
        '<span class="kn">import</span>' in pages["reference/resnet_study.predictor.html"]
    )  # an example is shown as code
    # What is loaded with a page comes with it.
    loaded = [link for text in pages.values() for link in re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']?(https?:[^\"' >]+)", text)]  # fmt: skip
    assert not loaded
    (copy / "docs" / "faq.md").write_text("[lost](models.md#no-such-heading)\n", encoding="utf-8")
    assert build().returncode != 0


@pytest.mark.parametrize("code", list(find_blocks()))
def test_the_code_of_pages_runs(code, monkeypatch, request):
    monkeypatch.chdir(ROOT)
    if ".fit(" in code:
        request.getfixturevalue("eager")
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize("code", list(find_examples()))
def test_the_examples_of_docstrings_run(code, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {})
    # What an example prints stands in a comment behind it.
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)


@pytest.mark.parametrize("settings", [HyperParameters, FlowerParameters])
def test_published_recipes_are_those_that_their_settings_give(settings):
    """Else a further seed would begin a row of its own."""
    parser, rows = Parser(description=""), 0
    add_flags(parser, settings)
    for path in (ROOT / "results").glob("*.json"):
        for recipe, preset in {
            (row["recipe"], row["preset"]) for row in json.loads(path.read_text()) if "recipe" in row
        }:
            if recipe.startswith(settings.PROGRAM):
                words = shlex.split(recipe)
                given = vars(parser.parse_args(shlex.split(recipe.removeprefix(settings.PROGRAM))))
                config = from_flags(given) if settings is HyperParameters else settings(**given)
                assert sorted(shlex.split(config.command)) == sorted(words)
                if settings is HyperParameters:
                    usual = config.as_preset()
                    assert ("steps" in preset) == (config.train_steps != usual.train_steps), (preset, recipe)
                rows += 1
    assert rows


@pytest.fixture
def deployed(trained_run, tmp_path, monkeypatch):
    """A folder with the run NAME of each program: one of flowers in flowers/runs/."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run.path, "runs/NAME")
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    for number, image in enumerate(pixels):
        place = tmp_path / "flowers" / "images" / f"kind{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number}.png"), image)
    small = [
        "--model=resnet20",
        "--weights=none",
        "--image_size=32",
        "--head=pool",
        "--epochs=1",
        "--tensorboard=false",
    ]
    assert flowers.train.main(["--data_dir=flowers/images", "--runs_dir=flowers/runs", "--version=NAME", *small]) == 0


@pytest.mark.slow
def test_every_command_and_snippet_of_the_page_on_deployment_runs(deployed, capsys):
    """Those of the shipped weights on the CIFAR-10 of CIFAR_DIR, where that is set. Trainings are cut short."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    page = page.replace("\\\n", "").replace("--macs=0.6", "--macs=0.8")  # the run has no more to lose
    commands = re.findall(r"^    python (.*)$", page, re.MULTILINE)
    # Five steps: those of Lookahead, which the recipe of ResNet-9 has.
    tiny = ["--train_steps=5", "--report_freq=5", "--tensorboard=false", "--synthetic_images=200"]
    for words in map(functools.partial(shlex.split, comments=True), commands):
        program, main = words[0], cifar10_main.main
        if program == "-m":
            assert words[1] == "flowers.export"
            main, words = flowers.export.main, [*words[1:], "--runs_dir=flowers/runs", "--data_dir=flowers/images"]
        elif "--test_ckpt_path=cifar10" in words:
            if "CIFAR_DIR" not in os.environ:
                continue
            words.append(f"--data_dir={os.environ['CIFAR_DIR']}")
        shipped = "--test_ckpt_path=cifar10" in words
        words += tiny[: 3 if shipped else 4] if words[1] in ("--mode=prune", "--mode=train") else []
        words += ["--preset=smoke"] if words[1] == "--mode=train" else []
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert cifar10_main.main(["--mode=export", "--version=NAME", "--format=onnx,saved_model,keras"]) == 0
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(commands) >= 8 and len(blocks) >= 4
    for block in blocks:
        found = {}
        exec(compile(block, "docs/deploy.md", "exec"), found)
        assert np.asarray(found["probabilities"]).sum() == pytest.approx(1, abs=0.02)
