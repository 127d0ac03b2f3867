"""Several tasks on one trunk, and the choice of labels: on small files of the published formats."""

import dataclasses
import json
import pickle
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import assert_resumes_exactly, last_arrays

import cifar10_test
from cifar10_input import ImageData, Split, load_data, load_heads, split_data
from cifar10_main import main
from cifar10_train import Train, train
from hyper_parameters import HyperParameters, from_preset
from resnet_study.errors import UsageError
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.reports import figures, grad_cam
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model


def tiny(folder, data_dir, **settings):
    small = {"dataset": "cifar10", "heads": "class,kind", "train_steps": 4, "report_freq": 2, "tensorboard": False}
    return from_preset("smoke", runs_dir=str(folder), data_dir=str(data_dir), **small | settings)


@pytest.fixture(scope="module")
def cifar100_folder(tmp_path_factory):
    """A small `cifar-100-python/`: coarse label = fine label // 5."""
    folder = tmp_path_factory.mktemp("data") / "cifar-100-python"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, count in (("train", 300), ("test", 100)):
        fine = np.arange(count) % 100
        content = {
            b"data": rng.integers(0, 256, (count, 3072), np.uint8),
            b"fine_labels": fine.tolist(),
            b"coarse_labels": (fine // 5).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cifar_folder):
    """A finished run with two heads, tested and drawn by the command line."""
    folder = tmp_path_factory.mktemp("heads")
    flags = ["--preset=smoke", "--dataset=cifar10", "--heads=class,kind", "--head_weights=1,0.5", "--train_steps=4"]
    flags += ["--report_freq=2", "--tensorboard=false", f"--data_dir={cifar_folder}", f"--runs_dir={folder}"]
    assert main(["--mode=train", *flags, "--version=two", "--watch_test"]) == 0
    return RunFolder(folder / "two"), flags


def test_labels_of_each_head(cifar_folder, cifar100_folder, tmp_path):
    heads = load_heads(tiny(tmp_path, cifar_folder))
    classes, kinds = heads["class"], heads["kind"]
    assert classes.train.images is kinds.train.images
    vehicles = {"airplane", "automobile", "ship", "truck"}
    for label, kind in zip(classes.test.labels, kinds.test.labels, strict=True):
        assert (classes.class_names[label] in vehicles) == (kinds.class_names[kind] == "vehicle")
    heads = load_heads(tiny(tmp_path, cifar100_folder, dataset="cifar100", heads="coarse,fine"))
    assert list(heads) == ["coarse", "fine"]
    assert (heads["fine"].test.labels // 5 == heads["coarse"].test.labels).all()
    assert [len(data.class_names) for data in heads.values()] == [20, 100]


def test_one_head_alone_is_a_choice_of_labels(cifar_folder, tmp_path):
    config = tiny(tmp_path, cifar_folder, heads="kind", version="kind")
    assert load_data(config).class_names == ("vehicle", "animal")
    run = train(config)
    assert load_model(str(run.best)).output_shape == (None, 2)


def test_heads_share_the_trunk_and_the_split(cifar_folder, tmp_path):
    config = tiny(tmp_path, cifar_folder)
    trainer = Train(config)
    alone = Train(dataclasses.replace(config, heads="class"))
    assert trainer.model.count_params() == alone.model.count_params() + 64 * 2 + 2
    for both, single in (
        (trainer.task.training, alone.task.training),
        (trainer.task.validation, alone.task.validation),
    ):
        np.testing.assert_array_equal(both.images, single.images)
        np.testing.assert_array_equal(both.labels[:, 0], single.labels)
    kinds, _ = split_data(load_data(dataclasses.replace(config, heads="class")), config)
    np.testing.assert_array_equal(trainer.task.training.labels[:, 1], ~np.isin(kinds.labels, [0, 1, 8, 9]))


def test_heads_keep_the_validation_part_that_a_program_gives(tmp_path):
    rng, parts = np.random.default_rng(0), {}
    for name, count in (("train", 40), ("test", 20), ("validation", 12)):
        parts[name] = (
            rng.integers(0, 256, (count, 16, 16, 3), np.uint8),
            rng.integers(2, size=(count, 2)).astype(np.int32),
        )
        parts[name][1][:2] = [[0, 0], [1, 1]]
    heads = {
        head: ImageData(
            class_names=("a", "b"),
            found="a program",
            **{name: Split(images, labels[:, index]) for name, (images, labels) in parts.items()},
        )
        for index, head in enumerate(("class", "kind"))
    }
    task = Train(tiny(tmp_path, ""), data=heads).task
    for part, name in ((task.training, "train"), (task.validation, "validation")):
        np.testing.assert_array_equal(part.images, parts[name][0])
        np.testing.assert_array_equal(part.labels, parts[name][1])
    every = Train(tiny(tmp_path, "", validation_fraction=0), data=heads).task
    assert (len(every.training), len(every.validation)) == (52, 0)
    # Each by its name, in whichever order they come.
    turned = Train(tiny(tmp_path, ""), data=dict(reversed(heads.items()))).task
    np.testing.assert_array_equal(turned.training.labels, task.training.labels)
    for given, received in (({"class": heads["class"]}, "class"), (heads["class"], "one ImageData")):
        with pytest.raises(UsageError, match=f"for each of the heads class, kind, received {received}; give such"):
            Train(tiny(tmp_path, ""), data=given)
    with pytest.raises(UsageError, match=r"heads must label the same images, received .*'kind': \[40, 0, 20\]"):
        Train(tiny(tmp_path, ""), data=heads | {"kind": dataclasses.replace(heads["kind"], validation=None)})


def test_the_loss_is_the_weighted_sum(cifar_folder, tmp_path):
    trainer = Train(tiny(tmp_path, cifar_folder, head_weights="2,0.25"))
    rng = np.random.default_rng(0)
    logits = {"class": rng.normal(size=(5, 10)).astype("f"), "kind": rng.normal(size=(5, 2)).astype("f")}
    labels = np.int32([[3, 1], [0, 0], [9, 0], [5, 1], [2, 1]])
    losses, sums = trainer.task.measure(logits, labels)

    def cross_entropy(head, column):
        shares = np.exp(logits[head]) / np.exp(logits[head]).sum(axis=1, keepdims=True)
        return -np.log(shares[np.arange(5), labels[:, column]])

    expected = 2 * cross_entropy("class", 0) + 0.25 * cross_entropy("kind", 1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert float(sums["loss_kind"]) == pytest.approx(cross_entropy("kind", 1).sum(), rel=1e-5)
    assert float(sums["wrong"]) == (logits["class"].argmax(axis=1) != labels[:, 0]).sum()


def test_metrics_of_each_head_are_in_the_run_folder(finished):
    run, _ = finished
    history = run.read_history()
    for column in (
        "train_error_kind",
        "train_loss_kind",
        "validation_error_kind",
        "validation_loss_kind",
        "test_loss_kind",
    ):
        assert np.isfinite(history[column]).all()
    result = json.loads(run.result.read_text())
    best = history.loc[history["validation_error"][1:].idxmin()]  # of the trained network
    assert best["test_error_kind"] == pytest.approx(
        result["heads"]["kind"]["test"]["error"], abs=4
    )  # 60 images, another number format
    assert result["best_step"] == best["step"] and result["head"] == "class"
    assert result["heads"]["kind"]["validation_error"] == best["validation_error_kind"]
    answers = {
        head: np.load(run.path / name)
        for head, name in (("class", "predictions.npy"), ("kind", "predictions-kind.npy"))
    }
    assert answers["class"].shape == (60, 10) and answers["kind"].shape == (60, 2)
    matrix = np.array(result["heads"]["kind"]["test"]["confusion_matrix"])
    assert result["heads"]["kind"]["test"]["error"] == pytest.approx(100 * (1 - np.trace(matrix) / 60))
    assert matrix.sum(axis=1).tolist() == [24, 36]
    assert {path.stem for path in run.figures.glob("*.png")} >= {"heads", "error_curve", "confusion_matrix"}


def test_a_run_of_a_preset_that_is_not_for_heads_is_drawn(finished, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished[0].path, run.path)
    settings = json.loads(run.config.read_text())
    run.config.write_text(json.dumps(settings | {"preset": "night", "hard_share": 1.0}))
    monkeypatch.setattr(figures, "draw_figures", lambda *_: [])  # its settings are read before
    assert figures.draw(run) == [run.page]


def test_heads_of_other_names_are_explained():
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(inputs := keras.Input((16, 16, 3))))
    outputs = {name: keras.layers.Dense(3, activation="softmax", name=f"mine_{name}")(features) for name in ("a", "b")}
    heat = grad_cam.explain(keras.Model(inputs, outputs), np.zeros((1, 16, 16, 3), np.uint8), np.array([1]), "b")
    assert heat.shape == (1, 16, 16)


def test_file_and_checkpoint_answer_alike(finished):
    run, flags = finished
    images = load_data(HyperParameters(dataset="cifar10", data_dir=flags[-2].split("=")[1])).test.images
    final = cifar10_test.test(load_model(str(run.final)), images)
    again = cifar10_test.test(load_model(str(run.latest_checkpoint())), images)
    assert list(final) == ["class", "kind"]
    for head, probabilities in final.items():
        np.testing.assert_allclose(again[head], probabilities, atol=1e-6)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert cifar10_test.test(load_model(str(run.best)), images[:0])["kind"].shape == (0, 2)


def test_predict_and_publish(finished, tmp_path, capsys):
    import cv2

    run, flags = finished
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((40, 40, 3), np.uint8))
    assert main(["--mode=predict", flags[-1], "--version=two", "--images", str(tmp_path / "a.png"), "--explain"]) == 0
    for head in ("class", "kind"):
        assert (run.path / "explanations" / head / "001-a.png").is_file()
    table = pd.read_csv(run.path / "predictions.csv")
    assert table["kind_1"][0] in ("vehicle", "animal") and 0.5 <= table["kind_probability_1"][0] <= 1
    assert table["class_1"][0] in run.read_class_names()
    assert main(["--mode=publish", flags[-1], "--version=two", f"--results_dir={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "cifar10.json").read_text())
    assert {"test_error", "test_error_kind", "validation_error_kind"} <= {row["metric"] for row in rows}
    assert all(row["published"] is None for row in rows)
    assert "| resnet8, heads class,kind |" in (tmp_path / "README.md").read_text()


def test_other_heads_than_those_of_the_network_are_refused(finished, capsys):
    run, flags = finished
    for heads, received in (("", ""), ("class", "class")):
        config = [flag for flag in flags if flag.startswith(("--preset", "--dataset", "--data_dir", "--runs_dir"))]
        assert main(["--mode=test", *config, f"--heads={heads}", f"--test_ckpt_path={run.best}"]) == 2
        error = capsys.readouterr().err.strip()
        assert f"has the heads class, kind, received --heads={received}; give --heads=class,kind" in error
        assert len(error.splitlines()) == 1


def test_two_heads_and_all_options_resume_exactly_and_load(cifar100_folder, tmp_path):
    """The states of dropout go on where they were, also after other models were built in the process."""
    options = {
        "block_dropout": 0.3,
        "stochastic_depth": 0.5,
        "squeeze_excitation": 4,
        "zero_last_gamma": True,
        "maxout": 2,
    }
    settings = {
        "dataset": "cifar100",
        "heads": "fine,coarse",
        "deterministic": True,
        "towers": 1,
        "weight_averaging": 0.9,
        **options,
    }

    def train_it(version, **how):
        return train(tiny(tmp_path, cifar100_folder, version=version, **settings), **how)

    whole, _ = assert_resumes_exactly(train_it, 3)
    assert "validation_error_coarse_unaveraged" in whole.read_history()
    states = [array for name, array in last_arrays(whole).items() if name.startswith("state/")]
    assert len(states) == 6 and all(array[1] > 0 for array in states)

    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    final = load_model(str(whole.final))
    expected = cifar10_test.test(final, images)
    for model, tolerance in ((load_model(str(whole.latest_checkpoint())), 1e-6), (fold_batch_norm(final), 1e-4)):
        for head, probabilities in cifar10_test.test(model, images).items():
            np.testing.assert_allclose(probabilities, expected[head], atol=tolerance)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": "fine"}, "--heads must be one or more of class, kind, received 'fine'"),
        ({"heads": "class,class"}, "--heads must be one or more of class, kind"),
        ({"dataset": "digits", "heads": "class"}, "--heads must be left out for digits"),
        ({"heads": "class,kind", "head_weights": "1"}, r"--head_weights must be 2 positive number\(s\).*received '1'"),
        ({"heads": "class,kind", "head_weights": "1,-1"}, "--head_weights must be 2 positive"),
        ({"heads": "class,kind", "head_weights": "1,nan"}, "--head_weights must be 2 positive"),
        ({"head_weights": "1"}, "--head_weights are for --heads, received '1' and no heads"),
        ({"heads": "class,kind", "train_random_label": True}, "--heads need true labels"),
    ],
)
def test_heads_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        HyperParameters(**settings)
