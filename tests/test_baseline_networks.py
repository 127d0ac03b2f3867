"""LeNet-5, AlexNet and the plain CNN: exact sizes, training, exact resumption with dropout, testing and prediction."""

import json

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from conftest import assert_resumes_exactly, check_run_folder, last_arrays, tiny

import cifar10_test
from cifar10_main import main
from cifar10_train import Train, train
from hyper_parameters import from_flags, from_preset
from resnet_study.checkpoints import checkpoint_of, read_checkpoint
from resnet_study.networks import registry
from resnet_study.networks.baselines import build_alexnet, build_lenet5, build_plain_cnn
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.layers import PixelNormalization
from resnet_study.reports.published import published_number
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model

NAMES = ("lenet5", "lenet5_1998", "alexnet", "alexnet_b", "alexnet_c", "plain_cnn")
# architectures: layer by layer, by hand; the plain CNN as Keras' example prints it
SIZES = {
    ("lenet5", (32, 32, 3)): [456, 2_416, 48_120, 10_164, 850],
    ("lenet5", (28, 28, 1)): [156, 2_416, 48_120, 10_164, 850],
    ("lenet5_1998", (32, 32, 3)): [456, 2_416, 48_120, 10_164, 850],
    ("lenet5_1998", (28, 28, 1)): [156, 2_416, 48_120, 10_164, 850],
    ("alexnet", (32, 32, 3)): [1_792, 110_784, 663_936, 884_992, 590_080, 4_198_400, 16_781_312, 40_970],
    ("alexnet", (28, 28, 1)): [640, 110_784, 663_936, 884_992, 590_080, 1_052_672, 16_781_312, 40_970],
    ("alexnet_b", (32, 32, 3)): [7_296, 614_656, 885_120, 1_327_488, 884_992, 9_441_280, 16_781_312, 40_970],
    ("alexnet_b", (28, 28, 1)): [2_496, 614_656, 885_120, 1_327_488, 884_992, 4_198_400, 16_781_312, 40_970],
    ("alexnet_c", (32, 32, 3)): [23_296, 307_392, 663_936, 884_992, 590_080, 2_570],
    ("alexnet_c", (28, 28, 1)): [7_808, 307_392, 663_936, 884_992, 590_080, 2_570],
    ("plain_cnn", (32, 32, 3)): [896, 9_248, 18_496, 36_928, 1_180_160, 5_130],
    ("plain_cnn", (28, 28, 1)): [320, 9_248, 18_496, 36_928, 819_712, 5_130],
}
TOTALS = {
    ("lenet5", (32, 32, 3)): 62_006,
    ("lenet5", (28, 28, 1)): 61_706,
    ("alexnet", (32, 32, 3)): 23_272_266,
    ("alexnet", (28, 28, 1)): 20_125_386,
    ("alexnet_b", (32, 32, 3)): 29_983_114,
    ("alexnet_b", (28, 28, 1)): 24_735_434,
    ("alexnet_c", (32, 32, 3)): 2_472_266,
    ("plain_cnn", (32, 32, 3)): 1_250_858,
}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize(("name", "shape"), SIZES)
def test_exact_sizes(name, shape):
    model = registry.find(name).build(input_shape=shape)
    assert [layer.count_params() for layer in model.layers if layer.weights] == SIZES[name, shape]
    assert model.name == name and count(model.trainable_variables) == TOTALS.get((name, shape), sum(SIZES[name, shape]))
    if shape == (32, 32, 3):
        assert model.count_params() == registry.find(name).trainable


def maps(model, *names):
    return [model.get_layer(name).output.shape[1] for name in names]


def test_maps_are_those_of_the_texts():
    for shape in ((28, 28, 1), (32, 32, 3)):
        lenet = build_lenet5(input_shape=shape)
        assert maps(lenet, "conv1", "pool1", "conv2", "pool2", "flatten") == [28, 14, 10, 5, 400]
    kinds = {type(layer).__name__ for layer in build_lenet5("1998").layers}
    assert "AveragePooling2D" in kinds and "MaxPooling2D" not in kinds
    assert {layer.activation.__name__ for layer in build_lenet5("1998").layers if isinstance(layer, keras.layers.Activation)} == {"tanh"}  # fmt: skip
    pools = ("conv1", "pool1", "pool2", "pool5")
    assert maps(build_alexnet(), *pools) == [16, 8, 4, 2]
    assert maps(build_alexnet(input_shape=(28, 28, 1)), *pools) == [14, 7, 3, 1]
    assert maps(build_alexnet("B", dense_units=(8,)), *pools) == [32, 15, 7, 3]
    assert maps(build_alexnet("C"), *pools) == [8, 4, 2, 1]
    assert maps(build_plain_cnn(), "conv2", "pool2", "conv4", "pool4") == [30, 15, 13, 6]


def test_the_original_of_2012():
    model = build_alexnet("original", input_shape=(224, 224, 3), classes=1000)
    assert model.count_params() == 62_378_344
    assert maps(model, "conv1", "pool1", "pool2", "pool5") == [55, 27, 13, 6]


def test_local_response_normalization_is_the_papers(tmp_path):
    model = build_alexnet("original", input_shape=(64, 64, 1), classes=3, dense_units=())
    before, after = (model.get_layer(name).output for name in ("relu1", "norm1"))
    images = np.random.default_rng(0).random((2, 64, 64, 1), np.float32) * 50
    values, received = (np.asarray(part, np.float64) for part in keras.Model(model.input, [before, after])(images))
    padded = np.pad(values**2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    energy = sum(padded[..., shift : shift + 96] for shift in range(5))
    np.testing.assert_allclose(received, values / (2 + 1e-4 * energy) ** 0.75, rtol=1e-4, atol=1e-5)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(images), model(images))


@pytest.mark.parametrize("name", ["lenet5", "lenet5_1998", "alexnet_c", "plain_cnn"])
def test_save_load_and_fast_inference(name, tmp_path):
    build = registry.find(name).build
    model = build(preprocessing=PixelNormalization([120.0, 121.0, 122.0], 60.0))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    expected = cifar10_test.test(model, images)
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(cifar10_test.test(load_model(str(tmp_path / "model.keras")), images), expected)
    for file in ("model.keras", "model.weights.h5"):
        again = build(weights=tmp_path / file, preprocessing=model.layers[1])
        np.testing.assert_array_equal(cifar10_test.test(again, images), expected)
    np.testing.assert_allclose(cifar10_test.test(fold_batch_norm(model), images), expected, atol=1e-6)
    folded = fold_batch_norm(model, "mixed_bfloat16")
    np.testing.assert_allclose(cifar10_test.test(folded, images), expected, atol=0.05)
    # Pixels are not rounded, also where something stands before the first convolution.
    count = next(number for number, layer in enumerate(folded.layers) if isinstance(layer, keras.layers.Conv2D))
    assert {layer.compute_dtype for layer in folded.layers[1 : count + 1]} == {"float32"}


def test_residual_networks_halve_28_twice():
    model = registry.find("resnet8").build(input_shape=(28, 28, 1))
    assert maps(model, *(f"stage{stage}_block1_relu2" for stage in (1, 2, 3))) == [28, 14, 7]


@pytest.mark.parametrize(("name", "features"), [("lenet5", 84), ("alexnet", 4096), ("alexnet_c", 256), ("plain_cnn", 512)])  # fmt: skip
def test_without_top(name, features):
    assert registry.find(name).build(include_top=False).output_shape == (None, features)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (build_lenet5, {"form": "2020"}, "form must be 'modern' or '1998', received '2020'"),
        (build_lenet5, {"input_shape": (11, 28, 1)}, r"height >= 12.*received \(11, 28, 1\)"),
        (build_alexnet, {"form": "Z"}, "form must be one of A, B, C, original; received 'Z'"),
        (build_alexnet, {"form": "original"}, r"height >= 64.*received \(32, 32, 3\)"),
        (build_plain_cnn, {"classes": 0}, "classes must be an int >= 1, received 0"),
        (build_plain_cnn, {"weights": "cifar10"}, r"existing \.keras or \.weights\.h5 file"),
    ],
)
def test_wrong_arguments_are_refused(build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


@pytest.mark.parametrize("build", [build_lenet5, build_alexnet, build_plain_cnn])
def test_the_smallest_images_go_through(build):
    smallest = {build_lenet5: 12, build_alexnet: 16, build_plain_cnn: 10}[build]
    assert build(input_shape=(smallest, smallest, 1), classes=2)(np.zeros((1, smallest, smallest, 1))).shape == (1, 2)


# Training


def flags(mnist_folder, runs, *more):
    small = (
        "--train_steps=6",
        "--report_freq=3",
        "--train_batch_size=16",
        "--precision=float32",
        "--validation_fraction=0.2",
    )
    return ["--mode=train", "--dataset=mnist", f"--data_dir={mnist_folder}", f"--runs_dir={runs}", *small, *more]


def test_one_command_trains_tests_and_draws_on_mnist(mnist_folder, mnist_arrays, tmp_path):
    """Grey images of 28 x 28 through everything: normalisation, augmentation, TensorBoard, testing, figures, prediction."""
    assert main(flags(mnist_folder, tmp_path, "--model=lenet5_1998", "--version=x")) == 0
    run = tmp_path / "x"
    assert json.loads((run / "result.json").read_text())["test"]["images"] == 30
    check_run_folder(RunFolder(run))
    assert pd.read_csv(run / "error.csv")["step"].tolist() == [0, 3, 6]
    accumulator = tf.compat.v1.train.summary_iterator
    tags = {value.tag for file in (run / "tensorboard").iterdir() for event in accumulator(str(file)) for value in event.summary.value}  # fmt: skip
    # LeNet of 1998 has no ReLU layers; its activations are watched all the same.
    assert {"tanh1/sparsity", "tanh4/activations"} <= tags and any(tag.startswith("images") for tag in tags)
    digit = mnist_arrays[2][3]
    cv2.imwrite(str(tmp_path / "digit.png"), digit)
    cv2.imwrite(str(tmp_path / "large.png"), cv2.cvtColor(cv2.resize(digit, (280, 300)), cv2.COLOR_GRAY2BGR))
    predict = ["--mode=predict", f"--runs_dir={tmp_path}", "--version=x"]
    assert main([*predict, "--images", str(tmp_path / "digit.png"), str(tmp_path / "large.png")]) == 0
    table = pd.read_csv(run / "predictions.csv")
    expected = np.load(run / "predictions.npy")[3]
    assert table["class_1"][0] == expected.argmax() and table["probability_1"][0] == pytest.approx(
        expected.max(), abs=1e-3
    )
    checkpoint = sorted((run / "checkpoints").glob("*.npz"))[-1]
    images = mnist_arrays[2][..., None]
    np.testing.assert_allclose(
        cifar10_test.test(load_model(str(checkpoint)), images),
        cifar10_test.test(load_model(str(run / "final.keras")), images),
        atol=1e-6,
    )


def test_dropout_goes_on_exactly_where_it_was(tmp_path):
    """Stopped after 4 of 8 steps and resumed by a model whose dropout layers have other names: the same weights, bit by bit."""

    def config(version):
        return tiny(tmp_path, version=version, model="plain_cnn", deterministic=True, train_steps=8, report_freq=4, train_batch_size=8,
                    precision="float32", init_lr=0.01, warmup_steps=0, weight_averaging=0.9)  # fmt: skip

    run, _ = assert_resumes_exactly(lambda version, **how: train(config(version), **how), 4)
    halfway, whole = read_checkpoint(checkpoint_of(run.checkpoints, 4))[0], last_arrays(run)
    states = sorted(name for name in whole if name.startswith("state/"))
    assert states == ["state/0000", "state/0001", "state/0002"]
    # Once a step: neither reports nor validation draw.
    assert [whole[name][1] - halfway[name][1] for name in states] == [4, 4, 4]


def test_dropout_differs_between_seeds_and_steps(tmp_path):
    models = [
        Train(from_preset("smoke", model="plain_cnn", seed=seed, runs_dir=str(tmp_path))).model for seed in (0, 0, 1)
    ]
    states = [[layer.seed_generator.state.numpy().tolist() for layer in model.layers if isinstance(layer, keras.layers.Dropout)] for model in models]  # fmt: skip
    assert states[0] == states[1] != states[2] and len({tuple(state) for state in states[0]}) == 3
    images = np.ones((1, 32, 32, 3), np.float32)
    assert not np.array_equal(models[0](images, training=True), models[0](images, training=True))
    np.testing.assert_array_equal(models[0](images, training=False), models[0](images, training=False))


@pytest.mark.parametrize(
    ("dataset", "model", "error"),
    [
        ("mnist", "resnet20", 0.335),
        ("mnist", "alexnet", 0.56),
        ("mnist", "lenet5", 0.89),
        ("cifar10", "alexnet", 15.86),
        ("cifar10", "lenet5", 36.53),
        ("cifar10", "resnet20", 8.75),
        ("cifar100", "resnet20", 31.17),
        ("cifar100", "resnet9", None),
        ("mnist", "resnet20_preact", None),
        ("cifar10", "plain_cnn", None),
        ("digits", "lenet5", None),
    ],
)
def test_published_numbers_and_their_sources(dataset, model, error):
    number = published_number(from_flags({"dataset": dataset, "model": model}))
    if error is None:
        assert number is None
    else:
        others = {8.75: "He et al. 2015", 31.17: "chenyaofo/pytorch-cifar-models, 200 epochs"}
        source = others.get(error, "Lu & Song, table 1: the epoch of the highest test accuracy")
        assert number[:2] == ("test_error", error) and number[2].startswith(source)


def test_a_training_that_goes_on_from_another_is_held_against_no_published_number():
    given = {"validation_fraction": 0.0}
    assert published_number(from_flags(given))
    # Nor is one of four epochs, or for other images than those of the test.
    assert published_number(from_flags({"preset": "degradation"})) is None
    assert published_number(from_flags({"preset": "robust"})) is None
    assert published_number(from_flags(given | {"is_use_ckpt": True, "ckpt_path": "cifar10"})) is None


@pytest.mark.parametrize("setting", ["--num_residual_blocks=3", "--shortcut=B"])
@pytest.mark.parametrize("model", NAMES)
def test_settings_of_residual_networks_are_refused(tmp_path, capsys, model, setting):
    assert main(["--mode=train", f"--model={model}", setting, f"--runs_dir={tmp_path}/runs"]) == 2
    error = capsys.readouterr().err
    assert setting.split("=")[0] in error and f"--model={model}" in error and len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_training_takes_the_weights_of_a_network_of_other_classes_but_for_its_head(tmp_path, capsys):
    source = registry.find("plain_cnn").build(classes=3, preprocessing=PixelNormalization())
    source.save(tmp_path / "three.keras")
    settings = {"model": "plain_cnn", "is_use_ckpt": True, "ckpt_path": str(tmp_path / "three.keras")}
    trainer = Train(from_preset("smoke", runs_dir=str(tmp_path), **settings))
    head = trainer.model.get_layer("predictions").get_weights()
    trainer.task.begin(trainer.model, resumed=False)
    for layer in trainer.model.layers[:-1]:
        for expected, received in zip(source.get_layer(layer.name).get_weights() if layer.weights else (), layer.get_weights(), strict=True):  # fmt: skip
            np.testing.assert_array_equal(expected, received)
    for expected, received in zip(head, trainer.model.get_layer("predictions").get_weights(), strict=True):
        np.testing.assert_array_equal(expected, received)
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"starting from the weights of {tmp_path}/three.keras, but for the dense layer predictions (10 classes, 3 there), which "
        "begins random"
    )
