"""Trained networks as files of each format beside each other: what is told is true, and nothing is made twice."""

import shutil

import pandas as pd
import pytest

import cifar10_test
from cifar10_main import main
from resnet_study.files import read_json
from resnet_study.reports.results import publish_study
from resnet_study.studies import compress


@pytest.fixture
def quick(monkeypatch):
    """Fewer forms, and no times of processes with TensorFlow."""
    monkeypatch.setattr(compress, "_FILES", {"LiteRT float32": ("litert", "none"), "ONNX int8": ("onnx", "int8")})
    monkeypatch.setattr(compress, "_ROUNDS", 2)
    monkeypatch.setattr(compress, "_SECONDS", 0.0)
    monkeypatch.setattr(compress, "measure_apart", lambda *_: [0.01, 1.28])


@pytest.mark.slow
def test_forms_of_a_run_are_measured_once_and_published(quick, trained_run, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained_run.path, tmp_path / "done")
    flags = ["--mode=compress", "--versions=done", f"--runs_dir={tmp_path}"]
    assert main(flags) == 0
    folder = tmp_path / "compress"
    table = pd.read_csv(folder / "compress.csv")
    assert len(table) == 4
    tested = read_json(trained_run.result, dict)["test"]
    assert table["error"][:3].to_numpy() == pytest.approx(tested["error"], abs=0.6)  # of the second, in bfloat16
    assert (table["throughput_1"][:2] == 100).all() and (table["latency_1"][:2] == 10).all()
    assert table["ratio_1"][2] == pytest.approx(table["throughput_1"][2] / 100)
    assert table["bytes"][2] == next(folder.rglob("*.tflite")).stat().st_size
    known = (folder / "measured.json").read_bytes()
    monkeypatch.setattr(compress, "_time", None)
    monkeypatch.setattr(cifar10_test, "export", lambda *_, **__: pytest.fail("it was made before"))
    assert main(flags) == 0
    assert (folder / "measured.json").read_bytes() == known
    assert "Best choices" in capsys.readouterr().out
    publish_study(folder, "small", tmp_path / "results")
    assert "LiteRT float32" in (tmp_path / "results" / "small" / "README.md").read_text()


def test_best_choices_are_smaller_or_better():
    table = pd.DataFrame({"bytes": [4, 2, 3, 1, 1], "error": [5.0, 6.0, 6.0, 9.0, 9.5]})
    assert compress.find_best(table, "bytes").index.tolist() == [3, 1, 0]


def test_what_cannot_be_compared_is_refused(trained_run, tmp_path, capsys):
    flags = ["--mode=compress", f"--runs_dir={trained_run.path.parent}", "--version=no-study"]
    assert main([*flags, "--versions=done,resnet20"]) == 2 and "one data set" in capsys.readouterr().err
    assert main([*flags, "--versions=nothing"]) == 2 and "nothing" in capsys.readouterr().err
    for place in ("one", "two"):
        shutil.copytree(trained_run.path, tmp_path / place / "exp")
    two = ",".join(str(tmp_path / place / "exp") for place in ("one", "two"))
    assert main([*flags, f"--versions={two}"]) == 2 and "by different folders" in capsys.readouterr().err


@pytest.mark.slow
def test_all_forms_of_digits_by_their_own_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "_ROUNDS", 1)
    monkeypatch.setattr(compress, "_SECONDS", 0.0)
    run = ["--model=resnet8", "--train_steps=60", "--report_freq=30", "--warmup_steps=10", "--tensorboard=false"]
    assert main(["--mode=train", "--dataset=digits", *run, f"--runs_dir={tmp_path}", "--version=tiny"]) == 0
    assert main(["--mode=compress", f"--runs_dir={tmp_path}", "--versions=tiny"]) == 0
    table = pd.read_csv(tmp_path / "compress" / "compress.csv").set_index("form")
    assert len(table) == 8 and (table["same_class"] > 95).all()
    assert table["bytes"]["LiteRT int8"] < 0.5 * table["bytes"]["LiteRT float32"]
    assert (table["latency_1"] < table["latency_1"]["Keras predict, float32"]).sum() == 7
