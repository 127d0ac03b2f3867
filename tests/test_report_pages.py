"""report.html: one file, nothing from outside, the numbers of the run folder, readable without eyes or mouse."""

import collections
import html.parser
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from cifar10_main import main
from resnet_study.data.toy_data import draw_synthetic
from resnet_study.errors import UsageError
from resnet_study.files import hash_file, write_json
from resnet_study.reports import plots, run_page
from resnet_study.reports.comparison_page import write_comparison, write_study_page
from resnet_study.reports.gallery import choose_images
from resnet_study.reports.page import render_markdown
from resnet_study.reports.published import published_error
from resnet_study.reports.run_page import find_tested_images, write_run_page
from resnet_study.reports.tables import escape, table_lines
from resnet_study.run_folder import RunFolder


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, and its text by section."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], collections.Counter(), []
        self.text = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if not {"script", "style"} & set(self._open):
            self.text.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    """A tiny run, `a`, trained and tested by the command line, and `b`, the same with other settings."""
    folder = tmp_path_factory.mktemp("runs")
    assert main(["--mode=train", *TINY, "--version=a", f"--runs_dir={folder}"]) == 0
    shutil.copytree(folder / "a", folder / "b")
    config = folder / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"seed": 1, "init_lr": 0.02}))
    return folder


def read(path):
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def check_page(text, page):
    """What holds for every page."""
    assert len(text.encode()) < 3_000_000
    assert not [a for _, a in page.tags for name in ("src", "srcset") if not a.get(name, "data:").startswith("data:")]
    assert not [a for a in page.all("a") if ":" in a["href"]] and all(a["href"] == "data:," for a in page.all("link"))
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") for a in page.all("figure") if a.get("role") == "group")
    assert all("tabindex" in a and a["aria-label"] for a in page.tags for a in [a[1]] if a.get("class", "").startswith("scroll"))  # fmt: skip


def test_training_writes_the_page_of_its_run(runs_dir):
    run = RunFolder(runs_dir / "a")
    text, page = read(run.page)
    check_page(text, page)
    result = json.loads(run.result.read_text())
    told = " ".join(page.text)
    assert f"{result['test']['error']:.2f} %" in told and "python cifar10_main.py --mode=train --preset=smoke" in told
    sections = {a["aria-labelledby"] for a in page.all("section")}
    assert sections == {
        "numbers", "curves", "confusion", "wrong", "classes", "reliability", "images", "layers", "settings", "environment", "files",
    }  # fmt: skip
    # Each cell of the confusion matrix stands there, and opens what fell into it.
    cells = {a["data-cell"]: int(a["data-count"]) for a in page.all("button") if a.get("class") != "button" and "data-cell" in a}  # fmt: skip
    matrix = np.array(result["test"]["confusion_matrix"])
    assert cells == {f"{row},{column}": count for (row, column), count in np.ndenumerate(matrix) if count}
    files = {a["href"] for a in page.all("a") if not a["href"].startswith("#")}
    assert {"best.keras", "result.json", "error.csv"} <= files and all((run.path / name).exists() for name in files)
    assert re.search(r"Trained on [\d,]+ images, chosen on \d+", told)
    assert "train_steps=6" in told and "report_freq=3" in told  # what is other than in the preset


def test_the_gallery_holds_the_images_that_were_tested(runs_dir):
    run = RunFolder(runs_dir / "a")
    text, _ = read(run.page)
    gallery = json.loads(re.search(r'<script type="application/json" id="gallery">(.*?)</script>', text, re.DOTALL)[1])
    probabilities, labels = np.load(run.predictions), find_tested_images(run).labels
    assert len(gallery["images"]) > 10
    for image in gallery["images"]:
        assert image["label"] == labels[image["place"]] and image["source"].startswith("data:image/webp;base64,")
        assert image["predicted"] == probabilities[image["place"]].argmax()
        assert image["confidence"] == pytest.approx(100 * probabilities[image["place"]].max(), abs=0.051)
    wrong = (probabilities.argmax(axis=1) != labels).sum()
    assert sum(image["label"] != image["predicted"] for image in gallery["images"]) == wrong


def test_the_most_confident_mistakes_come_first_and_then_every_cell_before_one_has_two():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.dirichlet(np.ones(7), 2000), rng.integers(0, 7, 2000)
    places = choose_images(probabilities, labels)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    assert set(places[:24]) == set(wrong[np.argsort(-confidence[wrong])[:24]]) and len(set(places)) == len(places)
    seen = collections.Counter()
    for place in places[:24]:
        seen[labels[place], predicted[place]] += 1
    ranks = []
    for place in places[24:]:
        cell = labels[place], predicted[place]
        ranks.append(seen[cell])
        seen[cell] += 1
    assert ranks == sorted(ranks)
    assert set(wrong) <= set(places) and (predicted == labels)[places].sum() == 7 * 12


def test_code_is_escaped_once():
    html = render_markdown("a `<b> & &lt;` <i>")
    assert "<code>&lt;b&gt; &amp; &amp;lt;</code>" in html and "&lt;i&gt;" in html


@pytest.mark.parametrize(
    ("numbers", "part", "expected"),
    [
        (
            {"test_error": (8.0, 8.75, "paper", ""), "validation_error": (9.0, 7.0, "paper", "")},
            "test",
            ("test", 8.75, "paper"),
        ),
        (
            {"test_error": (8.0, None, None, ""), "validation_error": (9.0, 12.8, "paper", "")},
            "test",
            ("validation", 12.8, "paper"),
        ),
        ({"validation_accuracy": (80.0, 88.37, "text", "")}, "validation", ("validation", 11.63, "text")),
        ({"test_error": (8.0, None, None, "")}, "test", None),
    ],
)
def test_a_published_number_stands_beside_what_it_is_of(numbers, part, expected):
    assert published_error(numbers, part) == expected


def test_a_line_marks_where_the_schedule_began_anew():
    history = pd.DataFrame({"step": [0, 2, 4], "train_error": [90, 50, 40], "validation_error": [90, 55, 45]})
    plot = plots.draw_errors(history, {"test": {"error": 44}, "best_step": 4}, "test", None, extended_at=2)
    assert "extended after step 2" in [item.label.value for item in plot.legend[0].items]


def test_names_of_strangers_are_text(runs_dir, tmp_path):
    shutil.copytree(runs_dir / "a", tmp_path / "a")
    run = RunFolder(tmp_path / "a")
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    data, result = json.loads(run.data.read_text()), json.loads(run.result.read_text())
    data["class_names"][0] = result["test"]["per_class"][0]["class"] = evil
    write_json(run.data, data)
    write_json(run.result, result)
    honest, _ = read(run.page)
    text, page = read(write_run_page(run, find_tested_images(run)))
    assert evil not in text and any(evil in part for part in page.text)
    assert len(page.all("script")) == len(Page(honest).all("script"))
    assert not [a for _, a in page.tags if "onerror" in a]


def test_images_that_cannot_be_put_beside_answers_are_left_out(runs_dir, tmp_path):
    shutil.copytree(runs_dir / "a", tmp_path / "a")
    run = RunFolder(tmp_path / "a")
    part = draw_synthetic(50, 0).test
    text, page = read(write_run_page(run, part.take(np.arange(3))))
    check_page(text, page)
    assert "could not be read when the run was tested" in " ".join(page.text) and 'id="gallery"' not in text


def test_a_run_without_what_later_versions_note_has_a_page_and_a_damaged_one_an_error(runs_dir, tmp_path):
    shutil.copytree(runs_dir / "a", tmp_path / "a")
    run = RunFolder(tmp_path / "a")
    run.environment.unlink()
    data, result = json.loads(run.data.read_text()), json.loads(run.result.read_text())
    write_json(run.data, {"class_names": data["class_names"]})
    kept = {name: value for name, value in result.items() if name != "pflop"}
    for name in ("reliability", "calibration_error", "brier_score"):
        del kept["test"][name]
    write_json(run.result, kept)
    tested = find_tested_images(run)
    text, page = read(write_run_page(run, tested))
    check_page(text, page)
    for name, value in (("pflop", "much"), ("test", kept["test"] | {"calibration_error": [], "brier_score": 1.0})):
        write_json(run.result, kept | {name: value})
        with pytest.raises(UsageError, match="holds what no run writes"):
            write_run_page(run, tested)


def test_a_test_is_not_shown_beside_a_training_that_went_on(runs_dir, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(runs_dir / name, tmp_path / name)
    runs = [RunFolder(tmp_path / name) for name in ("a", "b")]
    write_json(runs[0].result, json.loads(runs[0].result.read_text()) | {"last_step": 1})
    with pytest.raises(UsageError, match="a was tested after 1 steps and trained on to"):
        write_run_page(runs[0], find_tested_images(runs[0]))
    with pytest.raises(UsageError, match="a was tested after 1 steps and trained on to"):
        write_comparison(tmp_path / "both", runs)


def test_runs_lie_beside_each_other(runs_dir, tmp_path, capsys):
    flags = ["--mode=report", f"--runs_dir={runs_dir}"]
    assert main([*flags, "--versions=a,b", "--version=both"]) == 0
    assert f"written: {runs_dir}/both/report.html" in capsys.readouterr().out
    text, page = read(runs_dir / "both" / "report.html")
    check_page(text, page)
    table = text[text.index('id="differences"') :].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(\w+)</th>', table) == ["seed", "init_lr"]
    assert "0.02" in table
    assert {a["href"] for a in page.all("a")} >= {"../a/report.html", "../b/report.html"}
    for run in ("a", "b"):
        assert f"{json.loads((runs_dir / run / 'result.json').read_text())['test']['error']:.2f}" in text
    with pytest.raises(UsageError, match="must hold no run"):
        write_comparison(runs_dir / "a", [RunFolder(runs_dir / name) for name in "ab"])
    (runs_dir / "mine").mkdir()
    (runs_dir / "mine" / "report.html").write_text("precious")
    shutil.copytree(runs_dir / "b", tmp_path / "b")
    alike = [RunFolder(runs_dir / "a"), RunFolder(runs_dir / "b"), RunFolder(tmp_path / "b")]
    for folder, compared, told in (("mine", alike[:2], "is no comparison"), ("both", alike, "are called differently")):
        with pytest.raises(UsageError, match=told):
            write_comparison(runs_dir / folder, compared)
    assert (runs_dir / "mine" / "report.html").read_text() == "precious"
    for wrong, told in (("--versions=a", "two runs or more"), ("--versions=a,never", "expected a run in"), ("--version=never", "expected a run in")):  # fmt: skip
        assert main([*flags, wrong]) == 2 and told in capsys.readouterr().err


def test_the_page_is_written_again_on_demand(runs_dir):
    run = RunFolder(runs_dir / "b")
    before = run.page.read_bytes()
    run.page.unlink()
    assert main(["--mode=report", f"--runs_dir={runs_dir}", "--version=b"]) == 0
    assert abs(run.page.stat().st_size - len(before)) < 500  # identifiers of plots differ


def test_the_page_of_a_run_whose_table_of_labels_was_moved(runs_dir, monkeypatch):
    found = []
    monkeypatch.setattr(run_page, "find_tested_images", lambda run, **places: found.append((run.path.name, places)))
    monkeypatch.setattr(run_page, "write_run_page", lambda run, _: run.page)
    flags = ["--labels=new.csv", "--label_separator=semicolon", "--data_dir=elsewhere"]
    assert main(["--mode=report", f"--runs_dir={runs_dir}", "--version=b", *flags]) == 0
    assert found == [("b", {"labels": "new.csv", "label_separator": "semicolon", "data_dir": "elsewhere"})]


def test_a_study_has_a_page(runs_dir):
    folder = runs_dir / "study"
    write_json(folder / "study.json", {"command": "python cifar10_main.py --mode=compare", "runs": ["a", "b"]})
    (folder / "report.md").write_text(
        "**Errors** of <all>:\n\n| model | error |\n|---|---:|\n| resnet8 | 1.0 |\n| plain8 | 2.0 |\n"
    )
    shutil.copy(runs_dir / "a" / "figures" / "error_curve.png", folder / "curve.png")
    text, page = read(write_study_page(folder))
    check_page(text, page)
    assert "of &lt;all&gt;:" in text and "plain8" in text and 'alt="figure curve"' in text and 'id="run-table"' in text


def test_the_page_of_a_study_is_without_runs_that_changed_since(runs_dir, tmp_path, capsys):
    for name in "ab":
        shutil.copytree(runs_dir / name, tmp_path / name)
    tables = {name: hash_file(tmp_path / name / "error.csv") for name in "ab"}
    study = {"command": "python cifar10_main.py --mode=compare", "runs": ["a", "b"], "tables": tables | {"a": "other"}}
    write_json(tmp_path / "study" / "study.json", study)
    (tmp_path / "study" / "report.md").write_text("of before")
    last = (tmp_path / "b" / "result.json").read_text()
    write_study_page(tmp_path / "study")
    assert "without a, which was trained again since; repeat the study" in capsys.readouterr().out
    write_json(tmp_path / "b" / "result.json", json.loads(last) | {"last_step": 1})
    write_study_page(tmp_path / "study")
    assert "without b, which was trained on since it was tested" in capsys.readouterr().out


def test_names_of_strangers_are_no_links_and_no_columns():
    cells = [[escape("[a](javascript:alert(1))"), "1"], [escape("b | c_d_ *e* `f`"), "2"]]
    page = str(render_markdown("\n".join(table_lines(["class", "images"], "lr", cells))))
    assert "javascript:alert(1)" in page and "<a" not in page and "b | c_d_ *e* `f`</td>" in page
    page = str(render_markdown("[x](javascript:alert(1)) [y](https://a.b/c) ![z](figure.png)"))
    assert 'href="#"' in page and 'href="https://a.b/c"' in page and 'src="figure.png"' in page


def test_a_page_of_runs_without_reports_between_start_and_end(runs_dir, tmp_path):
    for name in "ab":
        shutil.copytree(runs_dir / name, tmp_path / name)
        table = pd.read_csv(tmp_path / name / "error.csv")
        table.iloc[-1:].to_csv(tmp_path / name / "error.csv", index=False)
    assert write_comparison(tmp_path / "c", [RunFolder(tmp_path / name) for name in "ab"]).is_file()
