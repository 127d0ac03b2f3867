"""Images with several labels: tables, parts, loss, metrics, runs of both programs, and what is refused."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import tensorflow as tf
from test_labelled_files import make

import cifar10_main
import flowers.evaluate
import flowers.train
from flowers.image_part import ImagePart
from resnet_study import new_data
from resnet_study.data.labelled_files import find_labelled
from resnet_study.data.mixing import Mixer
from resnet_study.data.splits import draw_fold, hold_out
from resnet_study.errors import UsageError
from resnet_study.evaluation import LabelledParts, check_classes, find_class_names
from resnet_study.metrics import measure
from resnet_study.networks import registry
from resnet_study.saved_models import load_model
from resnet_study.settings import Settings
from resnet_study.training.step import measure_labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data"), *(f"{i}.png" for i in range(40)))


def read(folder, cells, column="label", **options):
    """The labels of images 0, 1, ..., and the first line that is said."""
    rows = [f'{i}.png,"{cell}"' for i, cell in enumerate(cells)]
    (folder / "labels.csv").write_text("\n".join([f"image,{column}", *rows]))
    data = find_labelled(str(folder), "labels.csv", **options)
    files = {file.rpartition("/")[2]: label for file, label in data.parts["training"]}
    return [files.get(f"{i}.png") for i in range(len(cells))], data, data.found[0]


CAT_DOG, CAT, DOG = ("cat", "dog"), ("cat",), ("dog",)


@pytest.mark.parametrize(
    ("cells", "options", "labels", "told"),
    [
        (["cat dog", "dog", "cat"], {}, [CAT_DOG, DOG, CAT], "with a space between them"),
        (["dog, cat", "dog"], {}, [CAT_DOG, DOG], "with a comma"),
        (["dog;cat", "dog", ""], {}, [CAT_DOG, DOG, None], "with a semicolon"),
        (["dog|cat|", "cat | dog", "cat"], {}, [CAT_DOG, CAT_DOG, CAT], "with a bar"),
        (["16 0", "0", "7"], {}, [("0", "16"), ("0",), ("7",)], "with a space"),
        (["haze cat", "haze dog"], {"column": "tags"}, [("cat", "haze"), ("dog", "haze")], "with a space"),
        (["haze cat", "haze dog"], {"label_separator": "space"}, [("cat", "haze"), ("dog", "haze")], "with a space"),
        (["cat dog", "dog", "cat"], {"label_separator": "none"}, ["cat dog", "dog", "cat"], ""),
        (["pink rose", "english rose", "rose"], {}, ["pink rose", "english rose", "rose"], ""),
        (["cat, tabby", "dog, german"], {}, ["cat, tabby", "dog, german"], ""),
    ],
)
def test_what_a_cell_holds(folder, cells, options, labels, told):
    found, data, line = read(folder, cells, **options)
    assert found == labels and data.multi_label == bool(told)
    assert (f"several for an image, {told}" in line) if told else "several" not in line


def test_quotes_may_stand_behind_a_space(folder):
    (folder / "spaces.csv").write_text('id, label\n0, "cat, dog"\n1, "dog"\n2, cat\n')
    data = find_labelled(str(folder), "spaces.csv")
    assert data.multi_label and [label for _, label in data.parts["training"]] == [CAT_DOG, DOG, CAT]


@pytest.mark.parametrize(
    ("cell", "classes"),
    [
        ("cat dog", ("cat", "dog")),
        ("1;2", ("1", "2")),  # what the folders of the model's classes are called
        ("cat, owl", ("cat, owl",)),  # which the model does not know: it is refused as it stands there
    ],
)
def test_cells_of_other_images_are_split_into_labels_that_the_model_knows(folder, cell, classes):
    data = read(folder, [cell], label_separator="none")[1]
    assert new_data._split_labels(data, ("cat", "dog", "1", "2")).classes == classes


def test_columns_of_0_and_1(folder):
    (folder / "hot.csv").write_text("id,fold,cat,dog,split\n0,3,1,1,train\n1,1,0,0.0,train\n2,2,0,1,train\n")
    data = find_labelled(str(folder), "hot.csv")
    assert (
        data.multi_label and data.classes == CAT_DOG and "several for an image: 2 columns of 0 and 1" in data.found[0]
    )
    members = data.parts["training"]
    assert [label for _, label in members] == [CAT_DOG, (), DOG]
    assert data.number_labels(members, {"cat": 0, "dog": 1}).tolist() == [[1, 1], [0, 0], [0, 1]]
    (folder / "hot.csv").write_text("id,cat,dog\n0,1,0\n1,0,1\n")
    data = find_labelled(str(folder), "hot.csv")
    assert not data.multi_label and dict(data.parts["training"]) == {f"{folder}/0.png": "cat", f"{folder}/1.png": "dog"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,label\n0,cat,dog\n", "3 cells in row 2, expected 2; put several labels into quotes"),
        ("image,label\n0,cat\n0,dog\n", "expected one row for each image; put several labels into one cell"),
        ("image,cat,dog\n0,1,2\n1,0,1\n", "or columns of 0 and 1 for two classes or more"),
        ("image,cat\n0,1\n1,0\n", "or columns of 0 and 1 for two classes or more"),
    ],
)
def test_tables_that_cannot_be_read(folder, table, message):
    (folder / "wrong.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        find_labelled(str(folder), "wrong.csv")


def test_parts_have_their_share_of_rare_classes():
    labels = np.zeros((200, 4), int)
    labels[:, 0] = 1
    labels[:10, 1] = labels[5:12, 2] = 1
    labels[-1, 3] = 1  # which no part can share
    labels[50:70] = 0
    validation, test = hold_out(labels, {"validation_fraction": 0.2, "test_fraction": 0.2}, 0, list("abcd"))
    rest = np.setdiff1d(np.arange(200), np.concatenate([validation, test]))
    assert not np.intersect1d(validation, test).size and (len(validation), len(test)) == (40, 40)
    for part in (validation, test, rest):
        assert labels[part][:, 1].sum() >= 1 and labels[part][:, 2].sum() >= 1
    labels[100:108, 3] = 1
    folds = [draw_fold(labels, 5, number, 0, list("abcd")) for number in range(1, 6)]
    assert np.sort(np.concatenate(folds)).tolist() == list(range(200))
    assert all(labels[fold][:, 2].sum() in (1, 2) for fold in folds)
    with pytest.raises(UsageError, match="--folds=8 needs 8 images of each class or more, received 7 of 'c'"):
        draw_fold(labels, 8, 1, 0, list("abcd"))


def test_the_last_image_of_a_class_is_not_held_out():
    labels = np.zeros((60, 12), int)
    labels[:, 0] = 1
    labels[range(10), range(2, 12)] = 1  # ten classes of one image each, which are drawn with the frequent one
    for seed in range(5):
        parts = hold_out(labels, {"validation_fraction": 0.3, "test_fraction": 0.3}, seed, list("abcdefghijkl"))
        rest = np.setdiff1d(np.arange(60), np.concatenate(parts))
        assert labels[rest].any(axis=0).tolist() == [name != "b" for name in "abcdefghijkl"]
        before = hold_out(
            labels, {"validation_fraction": 0.3, "test_fraction": 0.3}, seed, list("abcdefghijkl"), keeps_last=False
        )
        assert list(map(len, parts)) == list(map(len, before)) and not np.intersect1d(*parts).size
    for seed in range(60):  # a part of one image does not become empty
        (part,) = hold_out(labels[:20], {"validation_fraction": 0.05}, seed, list("abcdefghijkl"))
        assert len(part) == 1 and labels[np.setdiff1d(np.arange(20), part)].any(axis=0).sum() == 11


def test_loss_and_metrics_are_those_of_others():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 4)).astype(np.float32), rng.integers(0, 2, (50, 4))
    labels[:, 3] = 0
    objective, sums = measure_labels(tf.constant(logits), tf.constant(labels, tf.int32), 0.2)
    theirs = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=0.2, reduction=None)
    np.testing.assert_allclose(objective, theirs(labels, logits), rtol=1e-5)
    probabilities = 1 / (1 + np.exp(-logits))
    metrics = measure(probabilities, labels, list("abcd"))
    predicted = probabilities >= 0.5
    assert float(sums["loss"]) / 50 == pytest.approx(metrics["loss"], rel=1e-5)
    assert float(sums["wrong"]) == (predicted != labels).any(axis=1).sum()
    assert metrics["accuracy"] == pytest.approx(100 * sklearn.metrics.accuracy_score(labels, predicted))
    assert metrics["hamming_error"] == pytest.approx(100 * sklearn.metrics.hamming_loss(labels, predicted))
    present = labels[:, :3], probabilities[:, :3]
    assert metrics["mean_average_precision"] == pytest.approx(sklearn.metrics.average_precision_score(*present, average="macro"))  # fmt: skip
    f1 = sklearn.metrics.f1_score(labels, predicted, average=None, zero_division=0)
    assert [row["f1"] for row in metrics["per_class"]] == pytest.approx(f1)
    assert metrics["macro_f1"] == pytest.approx(f1[:3].mean()) and metrics["per_class"][3]["average_precision"] is None


@pytest.fixture
def table(folder):
    """40 images, of which every second has a, every third b and every fifth c, and the others none."""
    rows = [f"{i},{int(i % 2 == 0)},{int(i % 3 == 0)},{int(i % 5 == 0)}" for i in range(40)]
    (folder / "table.csv").write_text("\n".join(["image,a,b,c", *rows]))
    (folder / "new.csv").write_text("image,label\n0,a b\n1,c\n2,B\n")
    return [f"--data_dir={folder}", "--labels=table.csv"]


def test_a_model_of_one_label_is_not_tested_on_images_with_several():
    model = registry.find("resnet8").build(classes=2)
    data = LabelledParts({}, {"": ("cat", "dog")}, "these images", "others", multi_label=True)
    with pytest.raises(UsageError, match="gives one label for each image, but these images has several labels for an"):
        check_classes("x", model, data)


@pytest.mark.slow
def test_small_networks(folder, table, tmp_path, capsys, monkeypatch):
    runs, name = [f"--runs_dir={tmp_path}"], ["--version=x"]
    small = ["--dataset=folder", "--preset=smoke", "--image_size=8", "--report_freq=2", "--tensorboard=false", "--train_batch_size=8"]  # fmt: skip
    train = ["--mode=train", *small, *table, *runs, *name, "--mixup=0.2"]
    assert cifar10_main.main([*train, "--train_steps=4", "--lr_schedule=constant"]) == 0
    assert "mean average precision" in (tmp_path / "x" / "report.html").read_text()
    monkeypatch.setattr("resnet_study.reports.figures.draw", lambda *_, **__: [])
    assert cifar10_main.main(["--mode=train", *runs, *name, "--train_steps=6", "--resume"]) == 0
    said = capsys.readouterr().out
    assert "several for an image: 3 columns of 0 and 1" in said and "mean average precision 0." in said
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert (
        result["last_step"] == 6 and len(result["test"]["per_class"]) == 3 and "confusion_matrix" not in result["test"]
    )
    history = pd.read_csv(tmp_path / "x" / "error.csv").set_index("step")
    assert history["validation_loss"][1:].idxmin() == result["best_step"]
    best = str(tmp_path / "x" / "best.keras")
    assert find_class_names(best, load_model(best)).multi_label
    images = [str(folder / f"{i}.png") for i in range(3)]
    checkpoint = str(max((tmp_path / "x" / "checkpoints").glob("*.npz")))
    for model in (name, [f"--test_ckpt_path={checkpoint}"]):
        assert cifar10_main.main(["--mode=predict", *runs, *model, "--images", *images]) == 0
        assert "classes: those with a probability of 0.5 or more" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "x" / "predictions.csv", keep_default_na=False)
    probabilities = pd.read_csv(tmp_path / "x" / "probabilities.csv").iloc[:, 1:]
    for cell, (_, row) in zip(rows["classes"], probabilities.iterrows(), strict=True):
        assert cell == "; ".join(row[row >= 0.5].sort_values(ascending=False).index)
    new = ["--dataset=folder", f"--data_dir={folder}", "--labels=new.csv"]
    assert cifar10_main.main(["--mode=test", *runs, *name, *new]) == 0
    tested = json.loads(next((tmp_path / "x" / "evaluations").glob("*/result.json")).read_text())["test"]
    assert [row["images"] for row in tested["per_class"]] == [1, 2, 1]
    assert cifar10_main.main(["--mode=export", *runs, *name, "--format=keras"]) == 0
    capsys.readouterr()
    for flags, message in (
        (["--mode=calibrate", *runs, *name], "--mode=calibrate is for one label of each image"),
        (
            ["--mode=compare", *small, *table, *runs, "--models=resnet8"],
            "a study compares networks on images of one label",
        ),
        ([*train, "--overwrite", "--class_weight=balanced"], "--class_weight is for one label of each image"),
        ([*train, "--overwrite", "--train_random_label"], "--train_random_label is for one label of each image"),
    ):
        assert cifar10_main.main(flags) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_transfer_learning_and_folds(folder, table, tmp_path, monkeypatch):
    draw = flowers.evaluate._draw
    monkeypatch.setattr(
        flowers.evaluate, "_draw", lambda config, *rest: draw(config, *rest) if config.fold == 1 else None
    )
    flags = [
        "--model=resnet8",
        "--weights=none",
        "--image_size=8",
        "--epochs=1",
        f"--runs_dir={tmp_path}",
        "--tensorboard=false",
    ]
    assert flowers.train.main([*table, *flags, "--folds=2", "--version=x"]) == 0
    answers = pd.read_csv(tmp_path / "x" / "out_of_fold.csv", keep_default_na=False).set_index("image")
    assert (
        len(answers) == 40
        and answers.loc["30.png", "true_class"] == "a; b; c"
        and answers.loc["1.png", "true_class"] == ""
    )
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert result["metrics"]["mean_average_precision"]["std"] is not None and result["out_of_fold"]["images"] == 40
    page = (tmp_path / "x-fold1of2" / "report.html").read_text()
    assert "mean average precision" in page and "Most confident mistakes" not in page


def test_mixed_labels_are_shares():
    config = type("Config", (Settings,), {"seed": 0, "rand_augment": 0.0, "mixup": 0.4, "cutmix": 0.0})
    images = tf.zeros((2, 4, 4, 3))
    for labels in ([[1, 1, 0], [0, 0, 0]], [[1, 1, 0], [1, 1, 0]]):
        _, shares = Mixer(config, (4, 4, 3), 3).mix(images, tf.constant(labels), tf.constant(0, tf.int64))
        assert shares.shape == (2, 3) and np.all((shares >= 0) & (shares <= 1)) and np.all(shares[:, 0] == shares[:, 1])
    np.testing.assert_allclose(shares, labels)
    # The shares are those of the images: each is as bright as its share of the first label.
    labels = np.int32([[1, 1, 0], [0, 0, 0]] * 4)
    images = tf.constant(np.broadcast_to(np.float32(labels[:, :1, None, None]), (8, 4, 4, 3)))
    mixed, shares = Mixer(config, (4, 4, 3), 3).mix(images, tf.constant(labels), tf.constant(0, tf.int64))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], shares[:, 0], atol=1e-6)
    assert ((shares[:, 0] > 0) & (shares[:, 0] < 1)).numpy().any()


def test_what_stands_in_for_a_broken_image_brings_its_labels():
    """The labels of an image may be those of no other; then one that shares most stands in."""
    labels = np.array([[1, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 1]], np.int32)
    images = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    part = ImagePart(("a", "b", "c", "d"), labels, (2, 2, 3), images, broken={0: "broken"})
    assert part.read(0).max() == 2 and part.labels_of([0, 1]).tolist() == [[1, 0, 0], [0, 0, 1]]
    part.broken.update({2: "too", 3: "too"})
    assert part.read(0).max() == 1 and part.labels_of([0]).tolist() == [[0, 0, 1]]
    of_one = ImagePart(("a", "b", "c"), np.array([0, 1, 0], np.int32), (2, 2, 3), images, broken={0: "broken"})
    assert of_one.read(0).max() == 2 and of_one.labels_of([0, 1]).tolist() == [0, 1]
    of_one.broken[2] = "too"
    with pytest.raises(UsageError, match="no image of the class of a can be read"):
        of_one.read(0)
