"""A trained network as files for other programs: each is checked by its own runtime; damaged ones give one line."""

import concurrent.futures
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import unittest.mock
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, run_main

import cifar10_input
import cifar10_test
from cifar10_main import main
from hyper_parameters import HyperParameters
from resnet_study.class_names import ClassNames, parse_class_names
from resnet_study.errors import UsageError
from resnet_study.evaluation import find_class_names, find_model
from resnet_study.exporting import export, runtimes
from resnet_study.exporting.exported_model import open_model
from resnet_study.exporting.formats import Writer
from resnet_study.exporting.plain_keras import make_plain
from resnet_study.files import write_json
from resnet_study.networks.first_and_last import find_first_and_last
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.layers import PixelNormalization
from resnet_study.networks.registry import find
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model, save_model


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    return shutil.copytree(trained_run.path, tmp_path_factory.mktemp("runs") / "done")


@pytest.fixture(scope="module")
def exported(run):
    """The folder of the files for ONNX and LiteRT."""
    assert main(["--mode=export", f"--runs_dir={run.parent}", "--version=done", "--format=onnx,litert"]) == 0
    return run / "exported"


@pytest.mark.parametrize("file", ["onnx/done.onnx", "litert/done.tflite"])
def test_files_answer_as_their_source_and_name_their_classes(exported, run, tmp_path, file):
    facts = json.loads((exported / file).with_name("model.json").read_text())
    assert facts["parity"]["largest_difference"] <= 1e-4 and facts["error"] == facts["source_error"]
    assert facts["sha256"] == export.hash_file(exported / file)
    moved = tmp_path / (exported / file).name
    shutil.copy(exported / file, moved)
    model, source = open_model(str(moved)), load_model(str(run))
    images = np.random.default_rng(0).integers(0, 256, (3, *model.input_shape[1:]), np.uint8)
    for batch in (images, images[:1]):
        np.testing.assert_allclose(model.answer(batch), source(batch), atol=1e-4)
    assert find_class_names(str(moved), model) == find_class_names(str(run), source)


def test_a_question_that_was_interrupted_leaves_no_answer_for_the_next(exported, monkeypatch):
    model = open_model(str(exported / "onnx" / "done.onnx"))
    images = np.random.default_rng(0).integers(0, 256, (2, *model.input_shape[1:]), np.uint8)
    expected = model.answer(images[1:])
    for stop in (KeyboardInterrupt, TimeoutError):
        with monkeypatch.context() as patch, pytest.raises(stop):
            patch.setattr(runtimes, "read_message", unittest.mock.Mock(side_effect=stop))
            model.answer(images[:1])
        np.testing.assert_allclose(model.answer(images[1:]), expected, atol=1e-6)


def test_files_answer_several_threads_each_and_begin_again_where_they_ended(exported):
    model = open_model(str(exported / "onnx" / "done.onnx"))
    images = np.random.default_rng(0).integers(0, 256, (40, *model.input_shape[1:]), np.uint8)
    expected = model.answer(images)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda image: model.answer(image[None])[0], images))
    np.testing.assert_allclose(answers, expected, atol=1e-6)
    model._process.kill()
    with pytest.raises(UsageError, match="its runtime ended with signal 9"):
        model.answer(images)
    np.testing.assert_allclose(model.answer(images), expected, atol=1e-6)


def test_heads_are_no_paths(tmp_path):
    images = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(images)
    heads = {name: keras.layers.Dense(2, "softmax")(flat) for name in ("a", "x/../../../escaped")}
    keras.Model(images, heads).save(tmp_path / "evil.keras")
    with pytest.raises(UsageError, match=r"heads with plain names, received 'x/"):
        open_model(str(tmp_path / "evil.keras"))


def test_a_moved_keras_file_names_its_classes(run, tmp_path):
    shutil.copy(run / "best.keras", tmp_path / "moved.keras")
    path = str(tmp_path / "moved.keras")
    assert find_class_names(path, load_model(path)) == find_class_names(str(run), load_model(str(run)))


def test_an_exported_file_is_tested(exported, run, capsys):
    flags = ["--mode=test", f"--runs_dir={run.parent}", f"--test_ckpt_path={exported / 'litert' / 'done.tflite'}"]
    assert main(flags) == 0
    (place,) = run.parent.glob("test-litert-done-*")
    tested = json.loads((place / "result.json").read_text())["test"]["error"]
    assert tested == pytest.approx(json.loads((exported / "litert" / "model.json").read_text())["error"])
    answers = []
    for named in (flags[1:], [flags[1], "--version=done"]):
        assert main(["--mode=predict", *named, "--images", str(ROOT / "examples" / "cat.jpg")]) == 0
        answers.append(re.search(r"cat\.jpg +(\w+)", capsys.readouterr().out)[1])
    assert answers[0] == answers[1]


def test_a_file_that_answers_otherwise_is_not_kept(exported, run, monkeypatch, capsys):
    monkeypatch.setattr(export, "_LARGEST_DIFFERENCE", -1.0)
    before = (exported / "onnx" / "done.onnx").read_bytes()
    assert main(["--mode=export", f"--runs_dir={run.parent}", "--version=done", "--format=onnx"]) == 2
    assert "it was not kept" in capsys.readouterr().err
    assert (exported / "onnx" / "done.onnx").read_bytes() == before
    assert sorted(path.name for path in exported.iterdir()) == ["litert", "onnx"]


def test_what_lies_beside_an_export_is_not_deleted(tmp_path):
    for name in ("former.onnx", "labels.txt", "labels_fine.txt", "class_names.json", ".DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / "model.json").write_text('{"file": "former.onnx"}')
    export._check_replaced(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"holds notes\.txt, which no export has written; move it away"):
        export._check_replaced(tmp_path)
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "model.json").unlink()  # as earlier versions left it
    export._check_replaced(tmp_path)
    (tmp_path / "labels-of-mine.txt").touch()
    with pytest.raises(UsageError, match=r"holds labels-of-mine\.txt"):
        export._check_replaced(tmp_path)


def test_an_export_that_was_killed_between_two_moves_has_its_older_files_again(tmp_path):
    old = tmp_path / f"{export.ASIDE}9999999-old-onnx"
    old.mkdir()
    (old / "former.onnx").touch()
    with pytest.raises(UsageError, match="no file"), export._folder_aside(tmp_path / "onnx"):
        raise UsageError("no file")
    assert [path.name for path in tmp_path.rglob("*")] == ["onnx", "former.onnx"]


def test_a_file_is_judged_by_its_own_answers():
    labels = np.arange(20) % 2
    expected = np.eye(2)[labels]
    real = export.RealImages(np.zeros((20, 2, 2, 3), np.uint8), labels, "x", lambda: None)

    def compare(quantize, received):
        return export._compare(
            "m.onnx", "best.keras", quantize, real, {"": expected}, {"": received}, multi_label=False
        )

    one_wrong, two_wrong = (np.eye(2)[np.where(np.arange(20) < count, 1 - labels, labels)] for count in (1, 2))
    facts = compare("int8", one_wrong)
    assert (facts["error"], facts["source_error"]) == (5, 0)
    assert (facts["parity"]["same_class"], facts["parity"]["largest_difference"]) == (0.95, 1)
    assert compare("none", expected + 5e-5)["parity"]["same_class"] == 1
    with pytest.raises(UsageError, match=r"within 0\.0001, received probabilities that are 0\.0002 apart"):
        compare("none", expected + 2e-4)
    with pytest.raises(UsageError, match=r"for 95% of the images, received 90\.0% of x"):
        compare("int8", two_wrong)


def test_an_interrupt_between_two_renames_keeps_the_older_file(tmp_path, monkeypatch):
    place, replace = tmp_path / "onnx", Path.replace
    place.mkdir()
    (place / "older").touch()

    def interrupt(path, target):
        if (path / "newer").exists():
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), export._folder_aside(place) as aside:
        (aside / "newer").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["onnx", "onnx/older"]


@pytest.mark.parametrize(
    ("kind", "quantize", "words"),
    [
        ("onnx", "dynamic", "none or float16 or int8 for --format=onnx, received 'dynamic'"),
        ("keras", "int8", "none or float16 for --format=keras, received 'int8'"),
        ("tar", "none", "one or more of keras, saved_model, onnx, litert, received 'tar'"),
    ],
)
def test_what_a_format_does_not_have_is_refused_before_data_are_read(run, capsys, monkeypatch, kind, quantize, words):
    monkeypatch.setattr(cifar10_test, "load_as_trained", None)
    flags = [
        "--mode=export",
        f"--runs_dir={run.parent}",
        "--version=done",
        f"--format={kind}",
        f"--quantize={quantize}",
    ]
    assert main(flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


@pytest.mark.parametrize("name", ["resnet20", "resnet20_preact", "airbench", "lenet5"])
def test_plain_networks_hold_no_layer_of_this_library(name):
    model = find(name).build(input_shape=(32, 32, 3), classes=10)
    plain = make_plain(model)
    assert not [layer for layer in plain.operations if type(layer).__module__.startswith("resnet")]
    assert not re.search(r'"(module|registered_name)": "resnet', plain.to_json())
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    np.testing.assert_allclose(plain(images), model(images, training=False), atol=1e-5)


def test_plain_networks_are_float32_whatever_keras_is_set_to():
    model = find("resnet8").build(preprocessing=PixelNormalization(120.0, 60.0))
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        plain = make_plain(model)
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in plain.layers[1:]} == {"float32"}


def test_batch_norm_within_a_nested_model_is_folded():
    inputs = keras.Input((8, 8, 3))
    maps = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(inputs))
    nested = keras.Model(inputs, maps, name="backbone")
    pixels = keras.Input((8, 8, 3))
    model = keras.Model(pixels, keras.layers.Dense(2)(keras.layers.Flatten()(nested(pixels, training=False))))
    nested.layers[-1].moving_mean.assign([1, 2, 3, 4])
    folded, image = fold_batch_norm(model), np.ones((1, 8, 8, 3), np.float32)
    assert not [one for one in folded.get_layer("backbone").layers if isinstance(one, keras.layers.BatchNormalization)]
    np.testing.assert_allclose(folded(image), model(image), atol=1e-5)


def test_first_layers_with_weights_are_those_of_all_branches_and_last_ones_those_of_all_heads():
    operations = [
        (False, "pixels", "a"),
        (True, "a", "b"),  # two branches
        (True, "a", "c"),
        (False, "bc", "d"),
        (True, "d", "e"),
        (False, "e", "f"),
        (True, "f", "g"),  # two heads
        (False, "g", "h"),
        (True, "f", "i"),
    ]
    assert find_first_and_last(operations) == [0, 1, 2, 6, 7, 8]


def test_int8_needs_layers_between_the_first_and_the_last(tmp_path):
    pixels = keras.Input((4, 4, 3))
    maps = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(pixels)))
    names = ClassNames({"": ["a", "b", "c"]})
    writer = Writer(keras.Model(pixels, maps), "small", names, "uint8", lambda: np.zeros((1, 4, 4, 3)))
    with pytest.raises(UsageError, match="received a network without; give --quantize=none"):
        writer.write("onnx", "int8", tmp_path)


def test_statistics_of_a_normalization_are_constants_of_the_plain_network():
    pixels = keras.Input((4, 4, 3))
    normalization = keras.layers.Normalization(mean=[100.0, 110.0, 120.0], variance=[900.0, 1600.0, 0.0])
    model = keras.Model(pixels, keras.layers.Conv2D(2, 3)(normalization(pixels)))
    plain, image = make_plain(model), np.full((1, 4, 4, 3), [130.0, 70.0, 120.0], np.float32)
    assert not [layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization)]
    np.testing.assert_allclose(plain(image), model(image), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "resnet20_preact", "resnet9"])
def test_int8_files_of_the_shipped_networks_are_small_and_agree_with_them(name, tmp_path):
    if "CIFAR_DIR" not in os.environ:
        pytest.skip("CIFAR_DIR must name the folder of cifar-10-batches-py")
    flags = ["--mode=export", f"--model={name}", "--test_ckpt_path=cifar10", f"--data_dir={os.environ['CIFAR_DIR']}"]
    flags += ["--format=litert,onnx", "--compare=10000", f"--runs_dir={tmp_path}"]
    assert main(flags) == 0 and main([*flags, "--quantize=int8"]) == 0
    files = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/exported/*/model.json")}
    for kind in ("litert", "onnx"):
        facts = files[f"{kind}-int8"]
        assert facts["parity"]["same_class"] >= 0.992 and facts["error"] - facts["source_error"] <= 0.151
        assert facts["bytes"] <= 0.29 * files[kind]["bytes"]


@pytest.mark.parametrize("file", ["onnx/done.onnx", "litert/done.tflite"])
def test_damaged_files_give_one_line(exported, tmp_path, file):
    good, path = (exported / file).read_bytes(), tmp_path / (exported / file).name
    for content in (b"", b"nothing", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(UsageError, match="damaged, too large or no classifier"):
            open_model(str(path))


def test_class_names_that_are_no_json_are_told_in_one_line():
    for classes in ({"": 10}, {"kind": 2, "name": 10}):
        with pytest.raises(UsageError, match=r"m\.onnx must bring the names of its .*10 classes, received others"):
            parse_class_names("x", classes, "m.onnx")


def test_a_file_that_lost_its_class_names_says_so(exported, tmp_path, capsys):
    with zipfile.ZipFile(exported / "litert" / "done.tflite") as packed:
        network = min(item.header_offset for item in packed.infolist())
    (tmp_path / "cut.tflite").write_bytes((exported / "litert" / "done.tflite").read_bytes()[:network])
    model = open_model(str(tmp_path / "cut.tflite"))
    numbered = find_class_names(str(tmp_path / "cut.tflite"), model)[""]
    assert numbered[1] == "class 1"
    assert "cut.tflite tells no names of its classes, so they are numbered" in capsys.readouterr().out
    names = [f"name {index}" for index in range(len(numbered))]
    write_json(tmp_path / "data.json", {"class_names": names})  # the run that it lies in tells them
    assert find_class_names(str(tmp_path / "cut.tflite"), model)[""] == names and not capsys.readouterr().out


@pytest.mark.slow
def test_all_formats_of_the_shipped_network(tmp_path):
    flags = ["--mode=export", "--test_ckpt_path=cifar10", "--format=saved_model,keras", "--images"]
    done = run_main(*flags, __file__.replace("tests/test_exporting.py", "examples/cat.jpg"), cwd=tmp_path)
    assert done.stdout.count("written:") == 2


_OPEN = """
import keras, numpy as np
model = keras.saving.load_model("plain.keras", compile=False)
np.save("answers.npy", np.asarray(model.predict(np.load("images.npy"), verbose=0)))
print(keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", ["resnet20_preact", "airbench"])
def test_a_plain_keras_file_opens_under_other_backends(backend, name, tmp_path):
    """JAX_PYTHON and TORCH_PYTHON name interpreters that have Keras and the backend, where this one has not."""
    python = os.environ.get(f"{backend.upper()}_PYTHON", sys.executable)
    environment = os.environ | {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("PYTHONPATH", None)  # without this library
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    if subprocess.run([python, "-c", f"import {backend}, keras"], **options).returncode:
        pytest.skip(f"{python} has no {backend}; {backend.upper()}_PYTHON may name one that has it and Keras")
    spec = find(name)
    model = (
        spec.build(weights="cifar10") if spec.shipped_errors else spec.build(preprocessing=PixelNormalization(120, 60))
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.float32)
    save_model(make_plain(model), tmp_path / "plain.keras")
    np.save(tmp_path / "images.npy", images)
    done = subprocess.run([python, "-I", "-c", _OPEN], **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == backend
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), model(images, training=False), atol=1e-4)


def test_images_to_check_with_are_few_and_can_be_read(tmp_path, capsys):
    def read(file, shape):
        if "bad" in file:
            raise UsageError(f"{file} is damaged")
        return np.full(shape, int(Path(file).stem))

    for name in ("1", "2", "3", "bad"):
        (tmp_path / f"{name}.png").write_bytes(b"x")
    assert len(export.read_given([str(tmp_path)], read, (2, 2, 3), 2, 0)) <= 2
    assert sorted(export.read_given([str(tmp_path)], read, (2, 2, 3), 9, 0)[:, 0, 0, 0]) == [1, 2, 3]
    assert "left out: " in capsys.readouterr().out
    with pytest.raises(UsageError, match="is damaged"):
        export.read_given([str(tmp_path / "bad.png")], read, (2, 2, 3), 9, 0)


def test_int8_is_calibrated_on_what_was_trained_on(run):
    config = dataclasses.replace(RunFolder(run).read_config(HyperParameters), runs_dir=str(run.parent), version="done")
    data = cifar10_input.load_data(config)
    training, _ = cifar10_input.split_data(data, config)
    for given in (config, dataclasses.replace(config, test_ckpt_path=str(run), validation_fraction=0.5, split_seed=7)):
        path, _ = find_model(given)
        parts = cifar10_test._list_parts(given, path, load_model(path))
        np.testing.assert_array_equal(parts["training"].images, training.images)
        np.testing.assert_array_equal(parts["test"].images, data.test.images)
