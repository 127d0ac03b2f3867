"""Figures show what they say: whole titles, the colours of training, how many classes of how many."""

import io

import matplotlib
import numpy as np
import pandas as pd
import pytest

from cifar10_input import load_data, split_data
from hyper_parameters import from_preset
from resnet_study.reports import figures

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
        lambda: figures.draw_grid([np.zeros((3, 8, 8, 3), np.uint8)], ["a"], LONG),
    ],
    ids=["loss", "heads", "confusion", "grid"],
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


def test_what_is_cut_out_has_the_mean_colour_as_in_training(training):
    part, config = training
    figure = figures._draw_augmentation(part, config)
    mean = np.rint(part.images.mean(axis=(0, 1, 2)))
    variants = np.stack([axes.images[0].get_array() for axes in figure.axes if axes.images])[1:]
    assert (abs(variants - mean) <= 1).all(axis=-1).sum() > 500
    assert not (variants == 0).all(axis=-1).any()


def test_a_choice_of_classes_is_told(training):
    part, _ = training
    names = [f"class {i}" for i in range(100)]
    assert figures.draw_samples(part, names, "cifar100")._suptitle.get_text().endswith("20 of 100 classes")
    assert "classes" not in figures.draw_samples(part, names[:10], "cifar10")._suptitle.get_text()


def test_a_hundred_classes_have_a_confusion_matrix_without_counts():
    figure = figures.draw_confusion(np.eye(100, dtype=int), [f"class {i}" for i in range(100)], "a title")
    assert not figure.axes[0].texts and figure.axes[0].images[0].get_array().shape == (100, 100)
