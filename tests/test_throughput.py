import json
import shutil
import sys

import keras
import numpy as np
import pytest
from conftest import ROOT

import cifar10_input
import resnet
from hyper_parameters import HyperParameters
from resnet_study.errors import UsageError
from resnet_study.networks import registry
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.saved_models import halve_weights

sys.path.insert(0, str(ROOT / "benchmarks"))
import measuring
import reading
import tensorflow_contenders
import throughput
import torch_contenders
from rows import check_place

FORMS = {"v1": {}, "projection": {"shortcut": "B"}, "preact": {"form": "preact"}, "plain": {"form": "plain"}}
KEPT_NORMS = {"v1": 0, "projection": 0, "preact": 3, "plain": 0}  # of ResNet-8: those behind an addition


@pytest.fixture(scope="module")
def images():
    data = cifar10_input.load_data(HyperParameters(dataset="synthetic", synthetic_images=240))
    return data.train.images


def randomised_model(images, **options):
    """A ResNet-8 with random statistics, scales and offsets, whose images fall into many classes with all margins."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    preprocessing = cifar10_input.make_normalization("channel_standard", images)
    model = resnet.build_resnet(1, preprocessing=preprocessing, classifier_activation=None, **options)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            count = layer.gamma.shape[0]
            layer.set_weights(
                [
                    rng.uniform(0.5, 1.5, count),
                    rng.normal(0, 0.3, count),
                    rng.normal(0, 0.5, count),
                    rng.uniform(0.5, 4, count),
                ]
            )
    dense = model.get_layer("predictions")
    kernel, _ = dense.get_weights()
    logits = np.asarray(model(images, training=False))
    dense.set_weights([kernel / logits.std(axis=0), -logits.mean(axis=0) / logits.std(axis=0)])
    return model


@pytest.mark.parametrize("form", FORMS)
def test_folded_network_equals_its_original(form, images):
    model = randomised_model(images, **FORMS[form])
    before = model.get_weights()
    expected = np.asarray(model(images, training=False))
    assert len(np.unique(expected.argmax(axis=1))) >= 4

    folded = fold_batch_norm(model)
    np.testing.assert_allclose(np.asarray(folded(images, training=False)), expected, atol=1e-4)
    norms = [layer for layer in folded.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == KEPT_NORMS[form]
    assert not folded.trainable_variables
    assert model.trainable_variables
    assert all(np.array_equal(*pair) for pair in zip(model.get_weights(), before, strict=True))

    fast = fold_batch_norm(model, "mixed_bfloat16")
    received = np.asarray(fast(images, training=False))
    assert received.dtype == np.float32
    # Random networks leave many images on the edge between two classes, where any rounding decides; those are left out.
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 0.1 * expected.std()
    assert clear.mean() > 0.5
    assert np.mean(received.argmax(axis=1)[clear] == expected.argmax(axis=1)[clear]) >= 0.97


def test_folding_leaves_alone_what_it_must():
    inputs = keras.Input((8, 8, 3))
    read_twice = keras.layers.Conv2D(4, 3, padding="same", name="read_twice")(inputs)
    active = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="active")(inputs)
    biased = keras.layers.Conv2D(4, 3, padding="same", bias_initializer="ones", name="biased")(inputs)
    parts = [read_twice, *(keras.layers.BatchNormalization()(x) for x in (read_twice, active))]
    parts.append(keras.layers.BatchNormalization(scale=False, name="foldable")(biased))
    model = keras.Model(inputs, keras.layers.Add()(parts)[:, ::2])
    model.get_layer("foldable").set_weights(np.array([[0.5] * 4, [0.2, -0.2, 1, 0], [2, 1, 0.5, 3]]))
    images = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    folded = fold_batch_norm(model)
    np.testing.assert_allclose(
        np.asarray(folded(images, training=False)), np.asarray(model(images, training=False)), atol=1e-5
    )
    assert len([layer for layer in folded.layers if isinstance(layer, keras.layers.BatchNormalization)]) == 2


def test_folding_refuses_what_it_cannot_fold():
    inputs = keras.Input((8, 8, 3))
    shared = keras.layers.Conv2D(3, 3, padding="same")
    with pytest.raises(ValueError, match="dtype must be"):
        fold_batch_norm(keras.Model(inputs, shared(inputs)), "float16")
    with pytest.raises(ValueError, match="each layer once"):
        fold_batch_norm(keras.Model(inputs, shared(shared(inputs))))
    with pytest.raises(ValueError, match="functional model"):
        fold_batch_norm(keras.Sequential([shared]))


@pytest.mark.parametrize("model", ["resnet20", "resnet32"])
def test_stock_network_has_as_many_parameters_as_ours(model):
    spec = registry.find(model)
    stock = tensorflow_contenders.build_stock(spec.options["num_residual_blocks"])
    assert sum(int(np.prod(variable.shape)) for variable in stock.trainable_variables) == spec.trainable
    measuring.check_parameters(stock.trainable_variables, {"contender": "stock", "model": model})
    with pytest.raises(AssertionError, match="parameters"):
        measuring.check_parameters(stock.trainable_variables[1:], {"contender": "stock", "model": model})


def test_torch_network_has_as_many_parameters_as_ours():
    pytest.importorskip("torch")
    model = torch_contenders.build_torch(3)
    measuring.check_parameters(model.parameters(), {"contender": "torch-float32", "model": "resnet20"})


def test_flop_are_those_of_the_layers():
    for blocks, millions in ((3, 40.55), (18, 252.89)):
        assert measuring.training_flop(blocks) / 6e6 == pytest.approx(millions, abs=0.01)
    assert measuring.steps_for(3, 40) == 40
    assert measuring.steps_for(18, 40) == 6
    assert measuring.steps_for(18, 3) == 3
    assert [throughput.is_measured("ours", 18, number) for number in range(5)] == [True, False, True, False, True]
    assert all(throughput.is_measured("ours", 3, number) for number in range(5))
    assert [throughput.is_measured("stock-jit", 3, number) for number in range(3)] == [True, False, False]
    assert not throughput.is_measured("ours-one-core", 18, 0)


# Three rounds; the second is slow for everyone. Ratios ours / stock: 2, 4, 3.
RATES = {"stock": (100, 50, 110), "ours": (200, 200, 330), "torch-float32": (160, 80, 165)}


def hand_made_records():
    records = []
    for number in range(3):
        machine = {
            "float32": 400.0,
            "bfloat16": 800.0,
            "input_rate": 6600.0,
            "import_seconds": 0.01,
            "build_seconds": 2.0,
        }
        records.append({"round": number, "contender": "machine", "model": None} | machine)
        for contender, rates in RATES.items():
            result = {"training_rate": rates[number], "inference_rate": 10 * rates[number], "inference_batch": 128}
            result |= {"training_memory": 900, "inference_memory": 500, "software": "", "steps": 6}
            result["number_format"] = "bfloat16" if contender == "ours" else "float32"
            records.append({"round": number, "contender": contender, "model": "resnet20"} | result)
        missing = {"missing": "No module named 'torch'", "steps": 6}
        records.append({"round": number, "contender": "torch-bfloat16", "model": "resnet20"} | missing)
    return records


def test_rows_hold_medians_ratios_by_round_and_what_is_missing():
    facts = {"command": "c", "wall_seconds": 61.4, "processor": "p", "cores": 2, "commit": "abc"}
    rows = throughput.make_rows(hand_made_records(), facts)
    found = {(row["model"], row["preset"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)

    def numbers(preset, metric, model="resnet20"):
        row = found[model, preset, metric]
        return row["value"], row["minimum"], row["maximum"]

    assert numbers("stock", "training_rate") == (100, 50, 110)
    assert numbers("ours", "inference_rate") == (2000, 2000, 3300)
    assert numbers("ours / stock", "training_ratio") == (3, 2, 4)  # not 200 / 100, the ratio of the medians
    assert numbers("ours / torch-float32", "inference_ratio") == (2, 1.25, 2.5)
    assert numbers("input pipeline / ours", "input_ratio") == (33, 20, 33)
    assert numbers("bfloat16", "speed", "matrix product 4096") == (800, 800, 800)
    share = 100 * 200 * measuring.training_flop(3) / 800e9  # ours is held against bfloat16
    assert numbers("ours", "training_share_of_matrix_product")[0] == pytest.approx(share, abs=1e-3)
    assert found["resnet20", "stock", "training_rate"]["std"] == pytest.approx(32.1455, abs=1e-4)
    assert found["resnet20", "ours", "training_rate"]["images_seen"] == 3 * 6 * 128

    for key in (("torch-bfloat16", "training_rate"), ("ours / torch-bfloat16", "training_ratio")):
        row = found["resnet20", *key]
        assert row["value"] is None
        assert row["runs"] == 0
        assert "No module named 'torch'" in row["note"]
    text = throughput.format_rows(rows)
    assert text.count("No module named 'torch'") == 4
    assert len(text.splitlines()) == len(rows)


def test_the_better_of_two_contenders_counts_in_each_round_and_what_has_no_inference_has_no_rows_of_it():
    records = hand_made_records()
    for contender, rates in {"torch-compile-bfloat16": (100, 100, 110), "torch-ddp-bfloat16": (50, 200, 55)}.items():
        for number, rate in enumerate(rates):
            result = {
                "training_rate": rate,
                "training_memory": 900,
                "number_format": "bfloat16",
                "software": "",
                "steps": 6,
            }
            if contender == "torch-compile-bfloat16":
                result |= {"inference_rate": 1000, "inference_memory": 900, "inference_batch": 512}
            records.append({"round": number, "contender": contender, "model": "resnet20"} | result)
    facts = {"command": "c", "wall_seconds": 61.4, "processor": "p", "cores": 2, "commit": "abc"}
    found = {(row["preset"], row["metric"]): row for row in throughput.make_rows(records, facts)}
    better = found["ours / better of torch-compile-bfloat16 and torch-ddp-bfloat16", "training_ratio"]
    assert (better["value"], better["minimum"], better["maximum"]) == (2, 1, 3)
    assert ("torch-ddp-bfloat16", "training_rate") in found and ("torch-ddp-bfloat16", "inference_rate") not in found
    assert found["ours / torch-compile-bfloat16", "inference_ratio"]["value"] == 2
    assert not any("ours-float32" in preset for preset, _ in found)  # it was not asked for


def test_one_core_is_told_and_held_against_no_product_of_all_cores():
    records = [record for record in hand_made_records() if record["contender"] in ("machine", "ours")]
    mine = [record for record in records if record["contender"] == "ours"]
    kept = ("round", "model", "training_memory", "software", "steps", "number_format")
    for record in mine:
        alone = {key: record[key] for key in kept} | {"training_rate": record["training_rate"] / 2}
        records.append(alone | {"contender": "ours-one-core"})
    facts = {"command": "c", "wall_seconds": 61.4, "processor": "p", "cores": 2, "commit": "abc"}
    found = {(row["preset"], row["metric"]): row for row in throughput.make_rows(records, facts)}
    assert found["ours / ours-one-core", "training_ratio"]["value"] == 2
    assert "one core" in found["ours-one-core", "training_rate"]["hardware"]
    assert ("ours-one-core", "training_share_of_matrix_product") not in found


def test_a_compiled_contender_without_a_compiler_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = torch_contenders.measure_torch(
        {"contender": "torch-compile-float32", "model": "resnet20", "part": "training"}
    )
    assert list(result) == ["missing"] and "C++ compiler" in result["missing"]


def test_one_value_has_no_deviation():
    expected = {"value": 5, "minimum": 5, "maximum": 5, "std": None, "runs": 1}
    assert throughput.summarise([5]) == expected


def test_wrong_use_is_one_line(capsys):
    assert throughput.main(["--models", "resnet20_preact"]) == 2
    assert throughput.main(["--models", "vgg"]) == 2
    assert throughput.main(["--contenders=ours,theirs"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)
    flags = throughput._make_parser().parse_args(["--rounds", "1", "--torch_python", "/home/me/python"])
    assert throughput._command(flags) == "python benchmarks/throughput.py --rounds 1 --torch_python PYTHON"


def test_halved_weights_load_as_before_and_are_rounded_once(tmp_path, images):
    model = randomised_model(images)
    model.save(tmp_path / "model.keras")
    halve_weights(tmp_path / "model.keras", tmp_path / "half.keras")
    loaded = keras.saving.load_model(tmp_path / "half.keras", compile=False)
    for received, weight in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(received, weight.astype(np.float16).astype(np.float32))
    assert (tmp_path / "half.keras").stat().st_size < 0.6 * (tmp_path / "model.keras").stat().st_size
    model.set_weights([weight + 1e5 for weight in model.get_weights()])
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"65,504"):
        halve_weights(tmp_path / "model.keras", tmp_path / "half.keras")


def test_reading_is_measured_in_turn(tmp_path):
    assert reading.main(["--images=2", "--rounds=2", f"--results_dir={tmp_path}"]) == 0
    rows = json.loads((tmp_path / "reading.json").read_text())
    assert [row["metric"] for row in rows] == ["reading_rate"] * 4 + ["reading_ratio"] * 3
    assert all(0 < row["minimum"] <= row["value"] <= row["maximum"] and row["runs"] == 2 for row in rows)
    assert reading.main(["--images=0"]) == 2


def test_a_contender_that_fails_once_loses_no_rounds_of_the_others(monkeypatch):
    calls = []

    def start(job, interpreter):
        calls.append(job["contender"])
        if job["contender"] == "stock" and calls.count("stock") == 1:
            raise throughput.FailedError("stock resnet20 ended with code 1: no memory")
        return {}

    monkeypatch.setattr(throughput, "_start", start)
    monkeypatch.setattr(throughput, "_describe", str)
    records = throughput.run_all(["resnet20"], ["stock", "ours"], 2, 10, "python")
    failed = [(record["round"], record["contender"]) for record in records if "missing" in record]
    assert failed == [(0, "stock")] and calls.count("ours") == 2 * len(throughput.CONTENDERS["ours"].parts)


def test_what_another_command_measured_is_not_replaced(tmp_path):
    check_place(tmp_path / "throughput.json", "this")
    (tmp_path / "throughput.json").write_text('[{"command": "another"}]')
    with pytest.raises(UsageError, match="holds what another command has measured; give another --results_dir"):
        check_place(tmp_path / "throughput.json", "this")
    check_place(tmp_path / "throughput.json", "another")
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UsageError, match="must be an index of results"):
        check_place(tmp_path / "throughput.json", "another")
