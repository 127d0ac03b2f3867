"""Studies of several runs: what is trained, what is reused, and whether the numbers in the tables are right."""

import collections
import dataclasses
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, TINY, run_main, user_environment

import cifar10_input
import resnet
from cifar10_main import main, make_parser
from hyper_parameters import from_preset
from resnet_study.checkpoints import HISTORY
from resnet_study.data import corruptions
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.networks import registry
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.reports.diagrams import _cut_block, _network_boxes, draw_blocks, draw_network
from resnet_study.reports.published import DEPTH_TABLE, find_family
from resnet_study.reports.results import publish_study, write_table
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.studies import cost, degradation
from resnet_study.studies import runs as study_runs
from resnet_study.studies.compare import accuracy_table, compare, difference_table
from resnet_study.studies.curves import draw_mean
from resnet_study.studies.degradation import degrade, measure_gradient_norms
from resnet_study.studies.diagrams import draw_study
from resnet_study.studies.robustness import measure_robustness
from resnet_study.studies.runs import (
    FinishedRun,
    _is_finished,
    data_key,
    describe,
    finish_runs,
    format_spread,
    group_runs,
    plan_runs,
    read_finished,
    study_command,
    write_results,
    write_study,
)

SMALL = {"train_steps": 4, "report_freq": 2, "synthetic_images": 200, "tensorboard": False}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished comparison of one network with itself, and the settings of its runs."""
    place = tmp_path_factory.mktemp("study") / "runs"
    given = SMALL | {"runs_dir": str(place)}
    costs = {"training_seconds": 0.5, "inference_seconds": 0.25, "training_memory": None, "hardware": "a machine"}
    with pytest.MonkeyPatch.context() as patch:  # a process that starts TensorFlow and trains: the slow test has it
        patch.setattr(cost, "_measure_cost_apart", lambda _: costs)
        return compare(given, ["resnet8"], ["synthetic"], [0]), given


def made_up(tmp_path, model, dataset, seed, train_errors, validation_errors, test_error):
    """A finished run with these numbers, without a network."""
    config = from_preset("fast", model=model, seed=seed, runs_dir=str(tmp_path), tensorboard=False)
    config = dataclasses.replace(config, dataset="cifar10")
    run = RunFolder(tmp_path / f"{model}-{seed}")
    history = pd.DataFrame(
        {"step": range(len(train_errors)), "train_error": train_errors, "validation_error": validation_errors}
    )
    result = {"best_step": 1, "last_step": 1, "test": {"error": test_error, "accuracy": 100 - test_error, "loss": 0.5}}
    result["test"]["confusion_matrix"] = [[1]]
    result["test"]["per_class"] = [{"class": "a", "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "images": 1}]
    return FinishedRun(config, run, history, result)


def test_the_table_by_hand(tmp_path):
    runs = [
        made_up(tmp_path, "resnet20", "cifar10", 0, [0, 20, 10, 12], [0, 30, 15, 14], 16.0),
        made_up(tmp_path, "resnet20", "cifar10", 1, [0, 20, 18, 14], [0, 30, 20, 18], 18.0),
        made_up(tmp_path, "resnet32", "cifar10", 0, [0, 5, 6, 7], [0, 9, 8, 7], 11.5),
    ]
    table = accuracy_table(group_runs(runs))
    first, second = table.to_dict("records")
    assert (
        first["seeds"] == 2 and first["training"] == [90, 86] and first["validation"] == [86, 82]
    )  # step 0 does not count
    assert first["test"] == [84, 82] and second["test"] == [88.5]
    assert first["published_training"] == 92.89 and first["published_test"] == 86.6
    assert describe(first["test"]) == {"value": 83, "std": pytest.approx(2**0.5)}
    assert format_spread(first["test"]) == "83.00 ± 1.41"
    assert format_spread(second["test"]) == "88.50"
    assert difference_table(table).empty  # no LeNet, no AlexNet
    table.loc[1, "model"], table.loc[1, "published_test"] = "lenet5", 63.47
    differences = difference_table(table).to_dict("records")
    assert [(row["model"], row["over"], row["points"]) for row in differences] == [("resnet20", "lenet5", -5.5)]
    assert differences[0]["published_points"] == pytest.approx(23.13)
    table.loc[0, ["model", "published_test"]] = "lenet5_1998", 63.47  # the paper has one LeNet
    assert difference_table(table)["published_points"].isna().all()
    for changes in ({"shortcut": "B"}, {"heads": "kind"}, {"train_steps": 100}, {"init_lr": 0.5}):
        other = [dataclasses.replace(runs[0], config=dataclasses.replace(runs[0].config, **changes))]
        table = accuracy_table(group_runs(other))
        assert table[["published_training", "published_test"]].isna().all(axis=None)


def test_the_mean_is_that_of_the_reports_that_all_seeds_have():
    tables = [
        pd.DataFrame({"step": [0, 10, 20, 25, 30], "error": [9.0, 4, 3, 8, 1]}),  # made longer after 25
        pd.DataFrame({"step": [0, 10, 20, 30], "error": [9.0, 6, 5, 3]}),
    ]
    axes = plt.figure().subplots()
    draw_mean(axes, tables, "step", "error", np.asarray, color="k")
    assert axes.lines[0].get_xydata().tolist() == [[10, 5], [20, 4], [30, 2]]


def test_which_network_is_held_against_which():
    found = [
        find_family(name) for name in ("resnet20", "resnet9", "lenet5", "lenet5_1998", "alexnet_b", "resnet20_preact")
    ]
    assert found == ["resnet", "resnet", "lenet", "lenet", "alexnet", None]


def test_a_study_is_not_called_like_one_of_its_runs():
    with pytest.raises(UsageError, match="--version=resnet8-synthetic-smoke-seed1 is the name of one of the runs"):
        plan_runs(SMALL | {"version": "resnet8-synthetic-smoke-seed1"}, ["resnet8"], ["synthetic"], [0, 1])


def test_the_plan():
    plan = plan_runs({"train_steps": 7}, ["resnet8", "resnet8:demo"], ["synthetic", "digits"], [0, 3])
    assert [(each.dataset, each.preset, each.seed) for each in plan] == [
        ("synthetic", "smoke", 0), ("synthetic", "smoke", 3), ("synthetic", "demo", 0), ("synthetic", "demo", 3),
        ("digits", "demo", 0), ("digits", "demo", 3),
    ]  # fmt: skip
    assert all(each.train_steps == 7 and each.model == "resnet8" for each in plan)
    assert make_parser().parse_args(["--mode=compare", "--seeds=0,3-5"]).seeds == [0, 3, 4, 5]
    assert [each.seed for each in plan_runs({}, ["resnet8", "plain8@2-4", "plain14@7"], ["digits"], [0])] == [
        0,
        2,
        3,
        4,
        7,
    ]
    assert plan_runs({"preset": "liang"}, ["resnet8"], ["digits"], [0])[0].preset == "liang"
    for models, datasets, message in (
        (["vgg"], ["digits"], "received 'vgg'"),
        (["resnet8"], ["stl"], "received 'stl'"),
        (["resnet8@2-0"], ["digits"], "received 'resnet8@2-0'"),
    ):
        with pytest.raises(UsageError, match=message):
            plan_runs({}, models, datasets, [0])


def test_settings_that_no_run_could_use_are_refused_before_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(study_runs, "_finish", None)
    for given, models, dataset, message in (
        ({"shortcut": "B"}, ["resnet8", "lenet5"], "digits", "lenet5 has no option shortcut"),
        ({"heads": "class,kind"}, ["resnet8"], "cifar10", "models with one head, received --heads=class,kind"),
        (
            {},
            ["resnet8", "inception_resnet_v1"],
            "digits",
            "needs images of at least 75 x 75 pixels, received 32 x 32",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            finish_runs(plan_runs(given | {"runs_dir": str(tmp_path)}, models, [dataset], [0]))


def test_a_comparison_writes_tables_figures_and_rows(study, tmp_path):
    folder, given = study
    drawn = {path.name for path in folder.glob("*.png")}
    assert drawn == {"accuracy-synthetic.png", "samples-synthetic.png",
                     "confusion-synthetic-resnet8-smoke.png"}  # fmt: skip
    report = (folder / "report.md").read_text()
    assert "| synthetic | resnet8 | smoke | 1 |" in report and "75," in report
    run = RunFolder(f"{given['runs_dir']}/resnet8-synthetic-smoke-seed0")
    result, history = json.loads(run.result.read_text()), run.read_history()
    rows = {(row["model"], row["metric"]): row for row in json.loads((folder / "study.json").read_text())["rows"]}
    assert rows["resnet8", "test accuracy, chosen on validation"]["value"] == pytest.approx(result["test"]["accuracy"])
    highest = rows["resnet8", "highest validation accuracy"]
    assert highest["value"] == pytest.approx(100 - history["validation_error"][1:].min(), abs=1e-4)
    looked = rows["resnet8", "highest test accuracy, chosen on the test images"]
    assert (
        looked["value"] == pytest.approx(100 - history["test_error"][1:].min(), abs=1e-4)
        and "not watched" not in report
    )
    assert highest["command"] == (
        "python cifar10_main.py --mode=compare --models=resnet8 --datasets=synthetic --seeds=0 --train_steps=4 "
        "--report_freq=2 --synthetic_images=200"
    )
    costs = pd.read_csv(folder / "cost.csv").set_index("model")
    model = load_model(str(run.best))
    assert costs["parameters"]["resnet8"] == sum(np.prod(weight.shape) for weight in model.trainable_weights)
    macs = costs["multiply_adds"]["resnet8"]
    assert costs["training_tflop"]["resnet8"] == pytest.approx(6 * macs * 4 * 32 / 1e12)
    assert rows["resnet8", "weights"]["hardware"] == "a machine" != highest["hardware"]
    assert costs["inference_seconds"]["resnet8"] == 0.25 and "| not measured |" in report
    assert ("resnet8", "peak memory of training") not in rows
    classes = pd.read_csv(folder / "per_class.csv")
    assert len(classes) == 10 and {"precision", "recall", "f1"} <= set(classes.columns)
    flags = ["--mode=publish", f"--runs_dir={given['runs_dir']}", "--version=compare", f"--results_dir={tmp_path}"]
    assert main(flags) == 0
    first = (tmp_path / "README.md").read_text()
    page = (tmp_path / "compare" / "README.md").read_text()
    assert "## compare" in first and "[page](compare/README.md)" in first
    assert "![accuracy-synthetic](accuracy-synthetic.png)" in page and report[:40] in page
    kept = tmp_path / "compare" / "runs" / run.path.name
    assert (kept / "error.csv").read_text() == run.error_csv.read_text() and (kept / "result.json").is_file()
    assert main(flags) == 0 and (tmp_path / "README.md").read_text() == first
    (tmp_path / "runs.json").write_text(json.dumps([row | {"run": "one"} for row in rows.values()]))
    assert main([*flags, "--experiment=runs"]) == 2 and not (tmp_path / "runs").exists()  # a list of single runs
    (tmp_path / "runs.json").unlink()
    told = json.loads((folder / "study.json").read_text())
    (folder / "study.json").write_text(json.dumps(told | {"runs": ["gone"]}))
    assert main(flags) == 2 and (kept / "error.csv").is_file()  # what is published stays
    (folder / "study.json").write_text(json.dumps(told))


def test_finished_runs_are_reused_and_other_runs_refused(study, monkeypatch, capsys):
    folder, given = study
    before = {
        path: path.stat().st_mtime_ns for path in folder.parent.rglob("*") if path.is_file() and path.parent != folder
    }
    monkeypatch.setattr(study_runs, "Train", None)  # nothing is trained
    monkeypatch.setattr(cost, "_measure_cost_apart", None)
    compare(given, ["resnet8"], ["synthetic"], [0])
    # The depth may also be told by the number of blocks.
    configs = plan_runs(given | {"num_residual_blocks": 1}, ["resnet20"], ["synthetic"], [0])
    configs += plan_runs(given, ["resnet8", "resnet8"], ["synthetic"], [0])
    assert [each.run.path.name for each in finish_runs(configs)[0]] == ["resnet8-synthetic-smoke-seed0"]  # once
    assert before == {path: path.stat().st_mtime_ns for path in before}
    layers = RunFolder(folder.parent / configs[0].run_name).figures / "layers.md"
    content = layers.read_text()
    layers.unlink()  # as after a kill between two figures
    assert not _is_finished(configs[0])
    layers.write_text(content)
    with pytest.raises(
        UsageError, match=r"expected a run with --init_lr=0.3 in .*seed0, which holds one with --init_lr=0.1"
    ):
        finish_runs(plan_runs(given | {"init_lr": 0.3}, ["resnet8"], ["synthetic"], [0]))
    with pytest.raises(UsageError, match="holds a run"):
        compare(given | {"version": "resnet8-synthetic-smoke-seed0"}, ["resnet8"], ["synthetic"], [0])


def test_robustness_begins_at_the_clean_test_accuracy(study):
    _, given = study
    folder = measure_robustness(given, ["resnet8"], ["synthetic"], [0])
    table = pd.read_csv(folder / "robustness.csv")
    run = RunFolder(f"{given['runs_dir']}/resnet8-synthetic-smoke-seed0")
    clean = json.loads(run.result.read_text())["test"]["accuracy"]
    assert len(table) == 24 and table["accuracy"][table["severity"] == 0].tolist() == pytest.approx([clean] * 4)
    assert {path.name for path in folder.glob("*.png")} == {"robustness-synthetic.png", "corruptions-synthetic.png"}
    rows = json.loads((folder / "study.json").read_text())["rows"]
    noise = next(row for row in rows if row["metric"].startswith("noise"))
    expected = table["accuracy"][(table["corruption"] == "noise") & (table["severity"] > 0)].mean()
    assert noise["value"] == pytest.approx(expected, abs=1e-4)


def test_a_study_deletes_its_own_figures_only(tmp_path, capsys):
    folder, results = tmp_path / "runs" / "x", tmp_path / "results"
    folder.mkdir(parents=True)
    for name in ("holiday", "old", "new"):
        (folder / f"{name}.png").write_bytes(b"drawn")
    row = {
        "dataset": "d",
        "model": "m",
        "preset": "p",
        "metric": "error",
        "unit": "%",
        "runs": 1,
        "published_source": None,
    }
    row |= {
        "hardware": "h",
        "commit": "c",
        "value": 1.0,
        "std": None,
        "published": None,
        "images_seen": 1,
        "wall_seconds": 1,
    }
    write_study(folder, "command", [row], "report", [folder / "old.png"])
    write_study(folder, "command", [row], "report", [folder / "new.png"])
    assert {path.stem for path in folder.glob("*.png")} == {"holiday", "new"}
    # Nor does publishing delete what it did not write.
    (results / "x" / "runs" / "mine").mkdir(parents=True)
    (results / "x" / "runs" / "mine" / "best.keras").write_bytes(b"trained")
    publish_study(folder, "x", results)
    assert (results / "x" / "runs" / "mine" / "best.keras").is_file() and (results / "x" / "new.png").is_file()
    (folder / "new.png").unlink()
    publish_study(folder, "x", results)
    # Numbers of runs that were trained on since are not laid beside those of the study.
    table = tmp_path / "runs" / "r" / "error.csv"
    table.parent.mkdir()
    table.write_text("step\n10\n")
    write_study(folder, "command", [row], "report", [], ["r"])
    publish_study(folder, "x", results)
    table.write_text("step\n10\n20\n")
    with pytest.raises(UsageError, match=r"runs.r was trained on since .*x told of it; repeat the study"):
        publish_study(folder, "x", results)
    assert not (results / "x" / "new.png").exists() and (results / "x" / "runs" / "mine" / "best.keras").is_file()
    (folder / "study.json").write_text('{"rows": [')  # damaged, and written anew
    write_study(folder, "python cifar10_main.py --mode=compare", [row], "report", [], ["r"])
    with pytest.raises(UsageError, match="holds the study of compare"):
        study_runs.study_folder({"runs_dir": str(folder.parent), "version": "x"}, "robustness")
    capsys.readouterr()
    write_study(folder, "python -m flowers.train --folds=5", [row], "report", [])
    assert "whose runs stay: 'python cifar10_main.py --mode=compare' makes it again" in capsys.readouterr().out
    write_study(folder, "python -m flowers.train --folds=5", [row], "report", [])
    assert capsys.readouterr().out == ""  # the same study
    with pytest.raises(UsageError, match="holds the study of train"):
        study_runs.study_folder({"runs_dir": str(folder.parent), "version": "x"}, "compare")
    (folder / "study.json").unlink()
    with pytest.raises(UsageError, match="must be empty or hold a study, received another report"):
        study_runs.study_folder({"runs_dir": str(folder.parent), "version": "x"}, "compare")
    (results / "README.md").write_text("my project")
    with pytest.raises(UsageError, match="must be an index of results, received another text"):
        write_table(results)
    for name in ("..", "a/b", ""):
        with pytest.raises(UsageError, match="--experiment must be the plain name of a list, received"):
            publish_study(folder, name, results)


def test_the_command_of_a_study_is_quoted():
    command = study_runs.study_command(
        "compare", {"dataset": "folder", "class_weight": "my weights.json"}, seeds=[0, 1]
    )
    assert shlex.split(command)[2:] == [
        "--mode=compare",
        "--seeds=0,1",
        "--dataset=folder",
        "--class_weight=my weights.json",
    ]


def test_a_failing_run_is_told_and_stops_no_other(tmp_path, monkeypatch, capsys):
    trained = []

    def finish(config, _data):
        trained.append(config.seed)
        if config.seed == 1:
            raise UsageError("the loss must be finite")

    monkeypatch.setattr(study_runs, "_finish", finish)
    monkeypatch.setattr(study_runs, "forget_models", lambda: None)  # there are none
    monkeypatch.setattr(study_runs, "read_finished", lambda config: config.seed)
    configs = plan_runs(SMALL | {"runs_dir": str(tmp_path)}, ["resnet8"], ["synthetic"], [0, 1, 2])
    finished, (failure,) = finish_runs(configs)
    assert trained == [0, 1, 2] and finished == [0, 2] and re.search("seed1: the loss must be finite", failure)
    with pytest.raises(UsageError, match=r"1 runs failed, .* shows the others: .*seed1: the loss must be finite"):
        write_results(tmp_path, "command", [], "tables", [], {}, [failure])
    assert failure in (tmp_path / "report.md").read_text() and failure in (tmp_path / "report.html").read_text()
    with pytest.raises(UsageError, match="was written without the runs that failed; repeat its command"):
        publish_study(tmp_path, "x", tmp_path / "results")
    with pytest.raises(UsageError, match=r"all 1 runs failed.*seed1: the loss must be finite"):
        finish_runs(configs[1:2])
    trained.clear()
    with pytest.raises(UsageError, match="data_dir must hold"):  # missing data is found before any training
        finish_runs(configs + plan_runs({"data_dir": str(tmp_path)}, ["resnet8"], ["cifar10"], [0]))
    assert trained == []


def test_gradient_norms_are_those_of_the_untrained_and_the_trained_network(study):
    _, given = study
    finished = read_finished(plan_runs(given, ["resnet8"], ["synthetic"], [0])[0])
    norms = measure_gradient_norms(finished)
    assert norms["step"].tolist() == [0, finished.result["best_step"]]
    assert [name for name in norms.columns if "conv" in name][:2] == ["stem_conv", "stage1_block1_conv1"]
    assert (norms.iloc[:, 1:] > 0).all().all() and norms.equals(measure_gradient_norms(finished))
    # By hand, for the last layer: the gradient by the scores is probability - label.
    model = load_model(str(finished.run.path))
    training, _ = cifar10_input.split_data(cifar10_input.load_data(finished.config), finished.config)
    inner = keras.Model(model.input, [model.get_layer("predictions").input, model.output])
    features, probabilities = inner(training.images[:128], training=True)
    gradient = np.asarray(features).T @ (np.asarray(probabilities) - np.eye(10)[training.labels[:128]]) / 128
    assert norms["predictions"][1] == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
    assert norms["predictions"][0] != norms["predictions"][1]


def test_the_deepest_networks_begin_slowly_where_the_paper_does(monkeypatch):
    asked = []

    def refuse(_, entries, *__, **___):
        asked.extend(entries)
        raise UsageError("enough")

    monkeypatch.setattr(degradation, "plan_runs", refuse)
    for how in ({"models": ["resnet56", "resnet110@1", "plain110:fast"]}, {"models": ["resnet110"], "short": True}, {}):
        with pytest.raises(UsageError, match="enough"):
            degrade({}, [110], [0], **{"short": False} | how)
    slow = ["plain110:he2015_110", "resnet110:he2015_110"]
    assert asked == ["resnet56", "resnet110:he2015_110@1", "plain110:fast", "resnet110", *slow]


def test_degradation_reads_what_the_runs_hold(tmp_path, monkeypatch):
    """Two made-up networks of equal depth: the numbers of the table and the figures, without training."""
    given, runs = {"runs_dir": str(tmp_path), "dataset": "synthetic", "preset": "smoke"}, []
    for model, error in (("plain8", 40.0), ("resnet8", 20.0)):
        (config,) = plan_runs(given, [model], ["synthetic"], [0])
        run = RunFolder(tmp_path / config.run_name)
        steps = [0, 20, 60]
        history = pd.DataFrame({name: np.linspace(1, 2, 3) for name in HISTORY})
        history = history.assign(step=steps, train_error=[90, 60, error], validation_error=[90.0, 70, error + 5])
        run.path.mkdir()
        run.config.write_text(config.to_json())
        history.to_csv(run.error_csv, index=False)
        result = {
            "test_error": error + 6,
            "test_top5_error": 1.0,
            "validation_error": error + 5,
            "best_step": 60,
            "last_step": 60,
        }
        scores = {"class": "a", "precision": 0.0, "recall": 0.0, "f1": 0.0}
        result |= {"images": 10, "confusion_matrix": [[1]], "test_loss": 1.0, "per_class": [scores]}
        write_json(run.result, result)
        write_json(
            run.environment, [{"command": "", "commit": "c", "processor": "p", "cores": 2, "dtype_policy": "float32"}]
        )
        run.best.write_bytes(b"")
        run.figures.mkdir()
        (run.figures / "layers.md").touch()
        pd.DataFrame(
            {"step": steps, "stem_conv": [8.0, 4, 2], "last_conv": [1.0, 1, 1], "predictions": [1, 1, 1]}
        ).to_csv(run.gradient_norms, index=False)
        runs.append(run)
    folder = degrade(given, [8, 8], [0], short=True)
    found = [read_finished(plan_runs(given, [m], ["synthetic"], [0])[0]) for m in ("plain8", "resnet8")]
    table = pd.read_csv(folder / "degradation.csv").set_index("form")
    assert table["training error, last report"].to_dict() == {"plain": 40, "resnet": 20}
    assert table["test error"]["plain"] == 46
    assert table["gradient norm, first / last convolution, untrained"]["plain"] == 8
    assert table["gradient norm, first / last convolution, trained"]["plain"] == 2
    with monkeypatch.context() as patch:  # the other network has failed
        patch.setattr(degradation, "finish_runs", lambda _: (found[1:], ["plain8: it diverged"]))
        with pytest.raises(UsageError, match="shows the others: plain8: it diverged"):
            degrade(given, [8], [0], short=True)
    assert pd.read_csv(folder / "degradation.csv")["form"].tolist() == ["resnet"]
    assert {path.stem for path in folder.glob("*.png")} == {
        "error_against_step",
        "error_against_depth",
        "gradient_norms",
    }
    monkeypatch.setattr(degradation, "save_figure", lambda figure, path: path)  # they were seen
    assert table["seeds"].to_dict() == {"plain": 1, "resnet": 1}
    assert "--depths=8" in json.loads((folder / "study.json").read_text())["command"]
    with pytest.raises(UsageError, match="plain and residual networks such as plain20 and resnet20, received lenet5"):
        degrade(given, [8], [0], short=True, models=["resnet8", "lenet5"])
    degrade(given, [], [0], short=True, models=["plain8", "resnet8@0"])
    assert "--models=plain8,resnet8@0" in json.loads((folder / "study.json").read_text())["command"]
    # Runs on all training images have no other curve than that of training; the legend names them all the same.
    alone = [dataclasses.replace(each, history=each.history.drop(columns="validation_error")) for each in found]
    figure = degradation.draw_error_against_step({"plain8": alone[:1], "resnet8": alone[1:]}, "synthetic")
    assert [axes.get_legend_handles_labels()[1] for axes in figure.axes] == [["plain8"], ["resnet8"]]
    figure = degradation.draw_error_against_depth(table.reset_index().assign(depth=20), "cifar10")
    assert [line.get_label() for line in figure.axes[1].lines][2:] == list(DEPTH_TABLE)
    assert [line.get_ydata()[0] for line in figure.axes[1].lines][2:] == [8.75, 7.40]
    # He's number stands beside his own recipe, on his data, and not beside a shorter one.
    for changes, published in (
        ({}, 8.75), ({"train_steps": 63000}, None), ({"dataset": "digits"}, None), ({"shortcut": "B"}, None),
    ):  # fmt: skip
        config = from_preset("he2015", **changes)
        finished = [
            dataclasses.replace(each, config=dataclasses.replace(config, model=model))
            for each, model in zip(found, ("plain20", "resnet20"), strict=True)
        ]
        monkeypatch.setattr(degradation, "finish_runs", lambda _, finished=finished: (finished, []))
        degrade(given, [8], [0], short=True)
        rows = json.loads((folder / "study.json").read_text())["rows"]
        assert {(row["model"], row["metric"]): row["published"] for row in rows if row["published"]} == (
            {("resnet20", "test error"): published} if published else {}
        )
    monkeypatch.undo()
    runs[0].gradient_norms.write_text("step\n1,2,3\nx")
    with pytest.raises(UsageError, match=r"gradient_norms\.csv is damaged"):
        degrade(given, [8], [0], short=True)


def test_a_block_without_weights_is_the_identity():
    """Lu & Song, section 3: with all weights 0, what remains is the shortcut. ReLU after the addition keeps what is positive."""
    model = resnet.build_resnet(1, input_shape=(8, 8, 3))
    names = ("stem_relu", "stage1_block1_relu2")
    block = keras.Model(model.inputs, [model.get_layer(name).output for name in names])
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    before, after = block(images)
    assert np.abs(before - after).max() > 0.1
    norm = model.get_layer("stage1_block1_bn2")
    norm.gamma.assign(0 * norm.gamma)
    before, after = block(images)
    np.testing.assert_array_equal(before, after)


def test_multiply_adds_are_counted_exactly():
    assert multiply_adds(resnet.build_resnet20()) == 40_551_040
    grey = resnet.build_resnet20(input_shape=(28, 28, 1))
    assert multiply_adds(grey) == pytest.approx(30.8e6, abs=0.05e6)
    layers = keras.layers
    mixed = keras.Sequential(
        [
            layers.Input((9, 9, 3)),
            layers.SeparableConv2D(8, 3),
            layers.DepthwiseConv2D(3),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    assert multiply_adds(mixed) == 7 * 7 * 3 * (9 + 8) + 5 * 5 * 8 * 9 + 5 * 5 * 8 * 4
    lenet = registry.find("lenet5").build(input_shape=(28, 28, 1))
    assert multiply_adds(lenet) == 117_600 + 240_000 + 48_000 + 10_080 + 840
    alexnet = registry.find("alexnet").build()
    maps = 256 * 64 * 27 + 64 * 192 * 576 + 16 * (384 * 1728 + 256 * 3456 + 256 * 2304)
    assert multiply_adds(alexnet) == maps + 1024 * 4096 + 4096 * 4096 + 4096 * 10 == 62_742_528


@pytest.mark.parametrize("mix", ["even", "compressed"])
@pytest.mark.parametrize("channels", [1, 3])
def test_worse_images_for_training_follow_from_seed_and_place(channels, mix):
    images = np.random.default_rng(0).integers(60, 190, (64, 16, 24, channels), dtype=np.uint8)
    worse = corruptions.worsen_batch(images, 0.5, (1, 2), mix=mix)
    assert worse.shape == images.shape and worse.dtype == np.uint8
    np.testing.assert_array_equal(worse[40:], corruptions.worsen_batch(images[40:], 0.5, (1, 2), 40, mix))
    changed = (worse != images).any(axis=(1, 2, 3)).mean()
    assert 0.25 < changed < 0.6  # half are drawn; of these one in sixteen or twenty-one stays by chance
    np.testing.assert_array_equal(corruptions.worsen_batch(images, 0.0, (1, 2)), images)
    assert np.abs(worse.astype(int) - images).mean() < 40  # still the same images


def test_a_mix_says_how_often_what_happens(monkeypatch):
    kinds, encode = collections.Counter(), cv2.imencode

    def count(ending, image, options):
        kinds[ending] += 1
        return encode(ending, image, options)

    monkeypatch.setattr(cv2, "imencode", count)
    images = np.full((400, 8, 8, 3), 128, np.uint8)
    corruptions.worsen_batch(images, 1.0, (1,))
    assert 170 < kinds[".webp"] < 230 and ".jpg" not in kinds
    kinds.clear()
    corruptions.worsen_batch(images, 1.0, (1,), mix="compressed")
    assert 120 < kinds[".webp"] < 180 and 120 < kinds[".jpg"] < 180
    # Of grey images, which this leaves as they are but for noise, a quarter have it.
    monkeypatch.setattr(cv2, "imencode", lambda ending, image, options: encode(".png", image))
    monkeypatch.setattr(cv2, "resize", lambda image, *rest, **how: image)
    noisy = corruptions.worsen_batch(images, 1.0, (1,), mix="compressed").std(axis=(1, 2, 3)) > 0
    assert 70 < noisy.sum() < 130
    with pytest.raises(UsageError, match="is about the images that --corrupt makes worse"):
        from_preset("smoke", corrupt_mix="compressed")


def test_severities_are_those_of_cifar10_c():
    """`make_cifar_c.py` of Hendrycks & Dietterich 2019."""
    assert {name: values for name, (_, values) in corruptions.CORRUPTIONS.items()} == {
        "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
        "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
        "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),
        "jpeg": (80, 65, 58, 50, 40),
    }


@pytest.mark.parametrize("channels", [1, 3])
def test_corruption(channels):
    images = cifar10_input.load_data(from_preset("smoke", synthetic_images=40)).test.images[:8, ..., :channels]
    for corruption in corruptions.CORRUPTIONS:
        distances = [
            np.abs(np.int32(corruptions.corrupt(images, corruption, severity)) - images).mean()
            for severity in corruptions.SEVERITIES
        ]
        assert distances[0] == 0 and distances[1] > 0, (corruption, distances)
        # What JPEG does to a few flat images need not grow from one quality to the next.
        assert (np.diff(distances[1:]) > (-0.5 if corruption == "jpeg" else 0)).all(), (corruption, distances)
        again = corruptions.corrupt(images, corruption, 3)
        np.testing.assert_array_equal(again, corruptions.corrupt(images, corruption, 3))
        assert again.shape == images.shape and again.dtype == np.uint8
    noise = np.int32(corruptions.corrupt(np.full((100, 32, 32, channels), 128, np.uint8), "noise", 5)) - 128
    assert noise.std() == pytest.approx(25.5, rel=0.02) and abs(noise.mean()) < 0.5
    assert (corruptions.corrupt(images, "noise", 3, seed=1) != corruptions.corrupt(images, "noise", 3)).any()
    for arguments in ((images, "fog", 1), (images, "noise", 6), (images / 255, "noise", 1), (images[0], "blur", 1)):
        with pytest.raises(UsageError, match="expected"):
            corruptions.corrupt(*arguments)


def test_colours_keep_their_hue():
    red = np.zeros((1, 8, 8, 3), np.uint8)
    red[..., 0] = 100
    brighter = corruptions.corrupt(red, "brightness", 4)
    assert (brighter[..., 0] == 151).all() and not brighter[..., 1:].any()
    red_ = corruptions.corrupt(red, "jpeg", 1)[0, 4, 4].astype(int)
    assert red_[0] > 90 and red_[1:].max() < 15  # not taken for blue


def test_diagrams_show_what_is_in_the_network():
    labels, edges, _ = _cut_block(resnet.build_resnet20(), "stage1_block2")
    assert ("x", "stage1_block2_add") in edges and ("x", "stage1_block2_conv1") in edges
    assert labels["stage1_block2_conv1"] == "conv 3 x 3, 16"
    plain = resnet.build_resnet(3, "plain")
    assert not [edge for edge in _cut_block(plain, "stage1_block2")[1] if edge[0] == "x"][1:]
    boxes = _network_boxes(resnet.build_resnet20())
    assert sum(count for _, count, has_shortcut, _ in boxes if has_shortcut) == 9
    assert boxes[2][0] == ["2 x conv 3 x 3, 16", "32 x 32 x 16"] and boxes[2][1] == 3
    assert not any(has_shortcut for _, _, has_shortcut, _ in _network_boxes(plain))
    # Branches that meet again are one box, also without a name.
    image = keras.Input((8, 8, 3))
    branches = [keras.layers.Conv2D(4, size, padding="same")(image) for size in (1, 3)]
    joined = keras.layers.ReLU()(keras.layers.Concatenate()(branches))
    branched = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(joined)))
    assert [box[0] for box in _network_boxes(branched)] == [
        ["image", "8 x 8 x 3"], ["conv 1 x 1, 4", "conv 3 x 3, 4", "512"], ["dense 2"],
    ]  # fmt: skip
    with pytest.raises(UsageError, match="no layers named stage9_block1"):
        draw_blocks([plain], "stage9_block1")


def test_diagram_mode(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--mode=diagram", "--models=resnet8,plain8"]) == 0
    drawn = {path.stem for path in (tmp_path / "runs" / "diagrams").glob("*.png")}
    assert drawn == {"resnet8", "plain8", "block-stage2_block1"}  # one block a stage: there is no stage1_block2
    assert main(["--mode=publish", "--version=diagrams"]) == 0
    # What an earlier call drew does not stay.
    assert main(["--mode=diagram", "--models=lenet5"]) == 0 and main(["--mode=publish", "--version=diagrams"]) == 0
    for place in ("runs", "results"):
        assert [path.stem for path in (tmp_path / place / "diagrams").glob("*.png")] == ["lenet5"]
    (tmp_path / "results" / "run").mkdir()
    (tmp_path / "results" / "run" / "error.csv").touch()
    assert main(["--mode=publish", "--version=diagrams", "--experiment=run"]) == 2
    assert "holds a run" in capsys.readouterr().err


def test_diagrams_tell_the_network_that_they_show(tmp_path, monkeypatch):
    thin = {"modules": (1, 1, 1), "width": 0.1}
    spec = dataclasses.replace(registry.find("inception_resnet_v1"), options=thin)
    monkeypatch.setitem(registry.MODELS, "inception_resnet_v1", spec)
    folder = draw_study({"runs_dir": str(tmp_path)}, ["inception_resnet_v1"])
    (row,) = json.loads((folder / "study.json").read_text())["rows"]
    assert row["dataset"] == "299 x 299 x 3, 10 classes"  # the size that the builder itself takes
    given = {"runs_dir": str(tmp_path), "version": "b", "shortcut": "B", "num_residual_blocks": 1}
    folder = draw_study(given, ["resnet20"])
    study = json.loads((folder / "study.json").read_text())
    expected = resnet.build_resnet(1, shortcut="B")
    assert study["rows"][0]["value"] == sum(int(np.prod(weight.shape)) for weight in expected.trainable_weights)
    assert study["rows"][0]["model"] == "resnet8" and study["rows"][0]["options"] == {"shortcut": "B"}
    assert study["command"] == (
        "python cifar10_main.py --mode=diagram --models=resnet20 --version=b --shortcut=B --num_residual_blocks=1"
    )
    with pytest.raises(UsageError, match="plain8 has no option shortcut"):
        draw_study({"runs_dir": str(tmp_path), "shortcut": "B"}, ["plain8"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--mode=compare", "--models=vgg", "--dataset=synthetic"], "received 'vgg'"),
        (["--mode=compare", "--datasets=cifar10", "--data_dir=/no/such/folder"], "--data_dir must hold"),
        (["--mode=compare", "--seeds=a"], "invalid comma-separated int value: 'a'"),
        (
            ["--mode=degradation", "--depths=21"],
            "expected the name of a network, received 'plain21'; did you mean plain",
        ),
        (["--mode=compare", "--validation_fraction=0"], "a study chooses weights on validation images"),
        (["--mode=compare", "--overwrite"], "delete run folders by hand"),
        (["--mode=robustness", "--strategy=multi_worker"], "one run after the other on one machine"),
        (["--mode=degradation", "--datasets=mnist"], "--mode=degradation has no --datasets"),
        (["--mode=diagram", "--seeds=0"], "--mode=diagram has no --seeds"),
        (
            ["--mode=compare", "--short"],
            "--mode=compare has no --short, received one; leave it out, it is for degradation",
        ),
        (["--mode=degradation", "--num_residual_blocks=2"], "--models or --depths name the networks"),
        (["--mode=degradation", "--short", "--preset=he2015"], "--short is --preset=degradation"),
        (["--mode=degradation", "--models=plain20", "--depths=20"], "--depths and --models both name networks"),
        (["--mode=degradation", "--models=resnet9"], "such as plain20 and resnet20, received resnet9"),
        (["--mode=degradation", "--model=resnet20"], "--models or --depths name the networks"),
        (["--mode=robustness", "--test_ckpt_path=cifar10"], "--mode=robustness reads no --test_ckpt_path"),
        (["--mode=compare", "--models=resnet20,resnet32", "--plateau_patience=3"], "--plateau_patience needs"),
        (["--mode=compare", "--prune_by=l1"], "--mode=compare reads no --prune_by"),
        (["--mode=diagram", "--preset=fast"], "--mode=diagram reads no --preset, received --preset=fast; leave it out"),
        (["--mode=diagram", "--dataset=mnist"], "--mode=diagram reads no --dataset"),
        (["--mode=diagram", "--heads=kind"], "--mode=diagram reads no --heads"),
        (["--mode=diagram", "--seed=1"], "--mode=diagram reads no --seed"),
        (["--mode=diagram", "--image_size=64"], "--mode=diagram reads no --image_size"),
        (["--mode=diagram", "--train_steps=5"], "--mode=diagram reads no --train_steps"),
        (
            ["--mode=compress", "--versions=resnet20", "--model=resnet9"],
            "--mode=compress with --versions reads no --model",
        ),
        (["--mode=compress", "--train_steps=5"], "--mode=compress reads no --train_steps"),
        (["--mode=compress", "--test_flip"], "--mode=compress reads no --test_flip"),
        (["--mode=compress", "--strategy=cpu"], "--mode=compress reads no --strategy"),
        (["--mode=train", "--models=resnet20"], "it is for compare and degradation and robustness and diagram"),
    ],
)
def test_mistakes_give_one_line(tmp_path, monkeypatch, capsys, flags, expected):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert expected in error and len(error.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_study_goes_on(tmp_path):
    """Ctrl-C in the second of four runs; the same command again; then nothing is left to do."""

    flags = [
        "--mode=degradation",
        "--depths=8,14",
        *TINY,
        "--dataset=synthetic",
        "--train_steps=60",
        "--report_freq=20",
    ]
    command = [sys.executable, str(ROOT / "cifar10_main.py"), *flags]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=user_environment()
    )
    second = RunFolder(tmp_path / "runs" / "resnet8-synthetic-smoke-seed0")
    while not second.error_csv.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "the same command goes on" in output and "Traceback" not in output
    first = RunFolder(tmp_path / "runs" / "plain8-synthetic-smoke-seed0")
    before = first.error_csv.stat().st_mtime_ns
    done = run_main(*flags, cwd=tmp_path)
    assert "run 2 of 4" in done.stdout and "run 1 of 4" not in done.stdout and "left" in done.stdout
    assert first.error_csv.stat().st_mtime_ns == before
    for depth in (8, 14):
        for form in ("plain", "resnet"):
            run = RunFolder(tmp_path / "runs" / f"{form}{depth}-synthetic-smoke-seed0")
            best = json.loads(run.result.read_text())["best_step"]
            assert pd.read_csv(run.gradient_norms)["step"].tolist() == [0, best]
            assert run.read_history()["step"].tolist() == [0, 20, 40, 60]
    assert "run 1 of" not in run_main(*flags, cwd=tmp_path).stdout
    run_main("--mode=compare", "--models=resnet8,plain8", *flags[2:], cwd=tmp_path)
    costs = pd.read_csv(tmp_path / "runs" / "compare" / "cost.csv")
    assert costs["training_memory"].between(100, 10000).all() and (
        costs[["training_seconds", "inference_seconds"]] > 0
    ).all(axis=None)


def test_a_network_with_a_network_in_it_is_drawn():
    inner = registry.find("resnet8").build(include_top=False)
    images = keras.Input((32, 32, 3))
    draw_network(keras.Model(images, keras.layers.Dense(3, "softmax")(inner(images)), name="outer"))


def test_a_study_reads_the_images_of_a_run_where_they_lie(tmp_path):
    place = tmp_path / "data"
    config = from_preset("fast", runs_dir=str(tmp_path), data_dir=str(place))
    run = RunFolder(f"{tmp_path}/{config.run_name}")
    with run.locked():
        run.begin(config, resume=False, overwrite=False)
    asked = dataclasses.replace(config, data_dir="")
    assert study_runs._as_stored(asked).data_dir == ""  # they are gone: Keras' cache
    place.mkdir()
    assert study_runs._as_stored(asked).data_dir == str(place)
    assert study_runs._as_stored(dataclasses.replace(config, data_dir="/other")).data_dir == "/other"


def test_a_study_refuses_a_split_that_its_folder_makes(tmp_path):
    for part in ("train", "valid", "test"):
        for label in "ab":
            (tmp_path / "images" / part / label).mkdir(parents=True)
            cv2.imwrite(str(tmp_path / "images" / part / label / "1.png"), np.zeros((8, 8, 3), np.uint8))
    given = {"data_dir": str(tmp_path / "images"), "runs_dir": str(tmp_path / "runs")}
    with pytest.raises(UsageError, match="--validation_fraction splits images that have no such part"):
        plan_runs(given | {"validation_fraction": 0.3}, ["resnet8"], ["folder"], [0])
    (config,) = plan_runs(given, ["resnet8"], ["folder"], [0])
    folds = [dataclasses.replace(config, folds=5, fold=1, validation_fraction=share) for share in (0.02, 0.1)]
    assert data_key(folds[0]) != data_key(folds[1])
    assert data_key(config) == data_key(dataclasses.replace(config, validation_fraction=0.3))


def test_the_command_of_a_study_tells_its_images_and_no_machine():
    given = {"data_dir": "/a/pets", "teacher": "/a/runs/t", "runs_dir": "/b", "class_weight": "/a/w.json"}
    command = study_command("compare", given, datasets=["folder"])
    assert (
        command
        == "python cifar10_main.py --mode=compare --datasets=folder --data_dir=pets --teacher=runs/t --class_weight=w.json"
    )
    assert study_command("compare", {"data_dir": "."}, datasets=["folder"]).endswith(f"--data_dir={Path.cwd().name}")
    assert "data_dir" not in study_command("compare", {"data_dir": "/a/cifar"}, datasets=["cifar10"])


def test_speed_is_measured_without_the_files_that_a_finished_run_needs_no_longer(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(cost, "Train", lambda short, data: tried.append(short) or 1 / 0)
    gone = {"class_weight": str(tmp_path / "gone.json"), "is_use_ckpt": True, "ckpt_path": str(tmp_path / "gone.keras")}
    with pytest.raises(ZeroDivisionError):
        cost.measure_training(from_preset("smoke", runs_dir=str(tmp_path), **gone))
    (short,) = tried
    assert (short.class_weight, short.is_use_ckpt, short.ckpt_path) == ("balanced", False, "")
