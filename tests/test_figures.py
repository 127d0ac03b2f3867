"""Figures show what they say: whole titles, the colours of training, how many classes of how many."""

import dataclasses
import io
import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

import cifar10_input
from cifar10_input import Split, load_data, split_data
from hyper_parameters import from_preset
from resnet_study.metrics import measure
from resnet_study.reports import figures, fonts, image_sheets, plots
from resnet_study.reports.image_sheets import draw_augmentation
from resnet_study.reports.reliability import draw_reliability

LONG = "resnet20, squeeze_excitation 4, stochastic_depth 0.1, heads fine,coarse on cifar100, preset fast with 3 other settings"
HISTORY = pd.DataFrame({"step": [0, 10], "train_loss": [2.3, 1.0], "validation_loss": [2.3, 1.2]})


@pytest.fixture
def training():
    config = from_preset("resnet9", dataset="synthetic", synthetic_images=300)
    return split_data(load_data(config), config)[0], config


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures._draw_loss(HISTORY, LONG, 10),
        lambda: figures._draw_heads(
            pd.DataFrame({"step": [0, 1], "validation_error": [90, 80], "validation_error_b": [50, 40]}),
            LONG,
            ["a", "b"],
        ),
        lambda: figures.draw_confusion(np.eye(10, dtype=int), [f"class {i}" for i in range(10)], LONG),
        lambda: image_sheets.draw_grid([np.zeros((3, 8, 8, 3), np.uint8)], ["a"], LONG),
        lambda: image_sheets.draw_variants([np.zeros((3, 8, 8, 3), np.uint8)], f"{LONG}, {LONG}", "epoch"),
    ],
    ids=["loss", "heads", "confusion", "grid", "variants"],
)
def test_long_titles_fit(draw):
    with matplotlib.rc_context(figures.STYLE):
        figure = draw()
        figure.savefig(io.BytesIO(), format="png")
    titles = [text for text in [figure._suptitle, *(axes.title for axes in figure.axes)] if text and text.get_text()]
    assert titles
    for title in titles:
        box = title.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, title.get_text()


@pytest.mark.parametrize("rows, columns", [(1, 10), (3, 2), (10, 10), (20, 10), (4, 25)])
def test_labels_of_rows_fit(rows, columns):
    images = [[np.zeros((8, 8, 3), np.uint8)] * columns] * rows
    with matplotlib.rc_context(figures.STYLE):
        figure = image_sheets.draw_grid(images, ["automobile", *["a class of a long name"] * (rows - 1)], "title")
        figure.savefig(io.BytesIO(), format="png")
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == rows and min(box.x0 for box in boxes) >= 0
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    assert max(image.get_window_extent().x1 for image in figure.axes[0].images) <= figure.bbox.x1


def test_what_is_cut_out_has_the_mean_colour_as_in_training(training):
    part, config = training
    figure = image_sheets.draw_augmentation(part, config)
    mean = np.rint(part.images.mean(axis=(0, 1, 2)))
    variants = np.stack([image.get_array() for image in figure.axes[0].images])[1:]
    assert (abs(variants - mean) <= 1).all(axis=-1).sum() > 500
    assert not (variants == 0).all(axis=-1).any()


def test_what_is_cut_out_is_the_mean_grey_where_each_image_is_normalised(training):
    part, config = training
    images = np.broadcast_to(np.uint8([40, 120, 200]), part.images.shape)
    grey = dataclasses.replace(config, normalization="image_standard", cutout=8)
    figure = image_sheets.draw_augmentation(dataclasses.replace(part, images=images), grey)
    variants = np.stack([image.get_array() for image in figure.axes[0].images])[1:]
    assert {tuple(colour) for colour in variants.reshape(-1, 3)} == {(40, 120, 200), (120, 120, 120)}


def test_sheets_of_no_image_are_empty():
    for rows, labels in (([], []), ([[]], ["a"])):
        assert not image_sheets.draw_grid(rows, labels, "title").axes[0].images
    none = Split(np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, int))
    assert not figures._draw_predictions(none, np.zeros((0, 2)), ["a", "b"], "title", "test").axes[0].images


def test_a_choice_of_classes_is_told(training):
    part, _ = training
    names = [f"class {i}" for i in range(100)]
    assert image_sheets.draw_samples(part, names, "cifar100")._suptitle.get_text().endswith("20 of 100 classes")
    assert "classes" not in image_sheets.draw_samples(part, names[:10], "cifar10")._suptitle.get_text()


def test_a_hundred_classes_have_a_confusion_matrix_without_counts():
    figure = figures.draw_confusion(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], "a title")
    assert not figure.axes[0].texts and figure.axes[0].images[0].get_array().shape == (100, 100)
    # Of so many the names could not be read, and a figure that grows with them would take the memory.
    figure = figures.draw_confusion(np.eye(1000, dtype=int), [f"class {i}" for i in range(1000)], "a title")
    assert max(figure.get_size_inches()) < 30


def test_classes_that_begin_alike_are_told_apart():
    names = [f"a class with a long name, and the number {i:02d}" for i in range(3)]
    axes = figures.draw_confusion(np.eye(3, dtype=int), names, "a title").axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == 3 and all(label.endswith(name[-9:]) for label, name in zip(labels, names, strict=True))


def test_the_sheet_of_augmentation_tells_what_it_does_not_show(training):
    part, config = training
    changed = dataclasses.replace(config, augment=False, rand_augment=0.3)
    title = image_sheets.draw_augmentation(part, changed)._suptitle.get_text()
    assert "switched off; not shown: rand_augment 0.3" in title


@pytest.mark.parametrize(
    "errors",
    [
        [96.875, 39.6, 4.5, 0.9, 0.2, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0],  # the digits in 400 steps
        [90.6, 58.3, 41.4, 33.4, 28.5, 25.3, 22.9, 20.9, 18.4, 17.2, 16.1, 15.5],  # CIFAR-10, a report per epoch
    ],
)
def test_the_smoothed_curve_stands_on_the_raw_one_also_in_short_runs(errors):
    history = pd.DataFrame({"step": range(len(errors)), "train_error": errors, "train_error_smoothed": errors[0]})
    history["validation_error"] = history["train_error"]
    result = {"test": {"error": 1.0}, "best_step": 3}
    for label, sign in (("error", 1), ("accuracy", -1)):
        axes = figures._draw_percent(history, "title", label, result, sign, 0.8, None, "test").axes[0]
        # They are one line then.
        assert [line.get_label() for line in axes.lines[:2]] == ["training (augmented)", "validation"]
        smoothed = figures.centred_means(errors, 0.8)
        assert np.isnan(smoothed[0]) and abs(smoothed - errors)[1:].max() < 1


def test_the_test_is_within_the_axes_where_no_validation_image_is_wrong():
    history = pd.DataFrame(
        {"step": range(6), "train_error": [90.0, 20, 9, 6, 4, 3], "validation_error": [90.0, 5, 3, 1, 0, 0]}
    )
    result = {"test": {"error": 4.0}, "best_step": 5}
    for sign, tested in ((1, 4.0), (-1, 96.0)):
        low, high = figures._draw_percent(history, "t", "l", result, sign, 0.8, None, "test").axes[0].get_ylim()
        assert low < tested < high
    shown = plots.draw_errors(history, result | {"test": {"error": 4.0}}, "test", None)
    assert shown.y_range.end > 4
    # And so is the end of each curve.
    history["train_error"] = [90.0, 40.0, 36.0, 30.0, 26.0, 20.0]
    low, high = figures._draw_percent(history, "t", "l", result, 1, 0.8, None, "test").axes[0].get_ylim()
    assert low < 20 < high < 40
    # Nor where the tested images are far harder.
    history["validation_error"] = [90.0, 22.0, 20.0, 18.0, 16.0, 15.0]
    result = {"test": {"error": 41.0}, "best_step": 5}
    low, high = figures._draw_percent(history, "t", "l", result, 1, 0.8, None, "test").axes[0].get_ylim()
    assert low < 41 < high and plots.draw_errors(history, result, "test", None).y_range.end > 41


def test_the_curves_of_a_run_of_few_reports_are_whole_and_its_ticks_are_steps():
    history = pd.DataFrame({"step": [0, 1, 2], "train_error": [89.0, 30, 2], "validation_error": [91.0, 20, 1]})
    history = history.assign(train_loss=[9.0, 2, 0.1], validation_loss=[12.0, 1, 0.1])
    result = {"test": {"error": 1.0}, "best_step": 2}
    axes = figures._draw_percent(history, "t", "l", result, 1, 0.8, None, "test").axes[0]
    assert axes.get_ylim()[1] > 91 and all(tick == int(tick) for tick in axes.get_xticks())
    assert plots.draw_errors(history, result, "test", None).y_range.end > 91
    assert figures._draw_loss(history, "t", 10).axes[0].get_ylim()[1] > 12


def test_a_published_number_of_several_views_or_a_noisy_curve():
    rng = np.random.default_rng(0)
    history = pd.DataFrame({"step": range(60), "train_error": [90, *(20 + rng.normal(0, 4, 59))]})
    result = {"test": {"error": 7.0}, "best_step": 59}

    def labels(published):
        axes = figures._draw_percent(history, "title", "error (%)", result, 1, 0.9, published, "test").axes[0]
        return [line.get_label() for line in axes.lines]

    assert labels(None)[1] == "training, mean of near reports"
    assert "published test: 7.51 % (He et al. 2015)" in labels(("test_error", 7.51, "He et al. 2015, table 6"))
    assert not [name for name in labels(("test_error_shifts", 5.99, "Jordan 2024")) if "published" in name]


def test_the_sheet_of_the_augmentation_alternates_as_the_training_does(monkeypatch):
    flips = []
    monkeypatch.setattr(
        cifar10_input, "augment", lambda images, _, flipped, *rest: flips.append(flipped) or tf.constant(images)
    )
    training = Split(np.zeros((20, 8, 8, 3), np.uint8), np.zeros(20, np.int32))
    draw_augmentation(training, from_preset("fast", train_batch_size=8, padding_size=2))
    assert len(flips) == 9
    for before, after in itertools.pairwise(flips):
        np.testing.assert_array_equal(before, ~after)


def test_the_smoothed_curve_of_a_long_run_is_smooth():
    steps = np.arange(200)
    level = 10 + 60 / (1 + steps / 5)
    raw = level + np.random.default_rng(0).normal(0, 2, 200)
    smoothed = figures.centred_means([90, *raw], 0.8)[1:]
    assert abs(smoothed - level)[20:-5].mean() < 0.6 * abs(raw - level)[20:-5].mean()
    assert abs((smoothed - level)[20:-5].mean()) < 0.3
    np.testing.assert_array_equal(figures.centred_means([90, *raw], 0.0)[1:], raw)


def make_font(path, family, characters):
    """A font with a square for each character."""
    names = [".notdef", *(f"u{ord(character):04X}" for character in characters)]
    pen = TTGlyphPen(None)
    for point, draw in zip([(0, 0), (0, 700), (700, 700), (700, 0)], [pen.moveTo, *[pen.lineTo] * 3], strict=True):
        draw(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def told(monkeypatch):
    """No East Asian font is installed, and nothing has been told."""
    others = [font for font in font_manager.fontManager.ttflist if font.name not in fonts._EAST_ASIAN]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", others)
    monkeypatch.setattr(fonts, "_told", set())


def save_matrix(path):
    with matplotlib.rc_context(figures.STYLE | {"font.family": fonts.font_families()}):
        figure = figures.draw_confusion(np.eye(2, dtype=int), ["猫", "cat 개"], "a title of 犬")
        return figures.save_figure(figure, path)


def test_characters_that_no_font_has_are_told_in_one_line(tmp_path, told, capsys, recwarn):
    for _ in range(2):
        save_matrix(tmp_path / "matrix.png")
    error = capsys.readouterr().err
    assert error.startswith(
        "figures show boxes for 犬猫개: no installed font has them; install a Noto font, such as Noto Sans CJK"
    )
    assert len(error.splitlines()) == 1 and not [each for each in recwarn if "Glyph" in str(each.message)]
    # Also where a figure is not written to a folder.
    figures.draw_explanation(io.BytesIO(), np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8)), "鳥 99 %")
    assert "boxes for 鳥:" in capsys.readouterr().err


@pytest.mark.parametrize("family", ["Noto Sans CJK JP", "WenQuanYi Zen Hei", "MS Gothic", "PingFang SC"])
def test_a_font_that_has_the_characters_is_used_where_it_is_installed(tmp_path, told, capsys, family):
    without = save_matrix(tmp_path / "without.png").read_bytes()
    capsys.readouterr()
    fonts._told.clear()
    font_manager.fontManager.addfont(make_font(tmp_path / "font.ttf", family, "猫犬개"))
    assert fonts.font_families() == ["sans-serif", family]
    assert save_matrix(tmp_path / "with.png").read_bytes() != without
    assert capsys.readouterr().err == ""


def test_wide_characters_break_lines_sooner():
    assert fonts.wrap("a name of some words", 16) == "a name of some\nwords"
    assert fonts.wrap("三色堇和向日葵以及玫瑰", 16) == "三色堇和向日葵以\n及玫瑰"


def test_the_reliability_diagram_tells_confidence_from_accuracy():
    probabilities = np.repeat([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]], [20, 20, 20, 1], axis=0)
    metrics = measure(probabilities, np.repeat([0, 1, 1, 1], [20, 20, 20, 1]), ["a", "b"])
    upper, lower = draw_reliability(metrics, "a model").axes
    points = upper.lines[1].get_xydata()
    np.testing.assert_allclose(points, [[60, 100], [90, 50]])  # and not the bin of one image
    assert "points" in upper.get_title() and sum(bar.get_height() for bar in lower.patches) == pytest.approx(100)
