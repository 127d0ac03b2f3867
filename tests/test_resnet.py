import functools
import inspect
import itertools
import pickle
import pydoc
import re
import textwrap
import warnings

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import tiny

import resnet
from cifar10_train import Train
from flowers.backbone_weights import load_backbone_weights
from resnet import build_resnet
from resnet_study import saved_models
from resnet_study.errors import UsageError
from resnet_study.networks import layers, registry
from resnet_study.networks.airbench import build_airbench
from resnet_study.networks.baselines import build_alexnet, build_lenet5, build_plain_cnn
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.inception_resnet import build_inception_resnet_v1, build_inception_resnet_v1_small
from resnet_study.networks.layers import FusedBatchNormalization, PixelNormalization, ZeroPadChannels, sigmoid_gelu
from resnet_study.networks.signatures import ResNetOptions
from resnet_study.networks.weights import copy_weights, find_new_heads

# architecture: He et al. 2015, section 4.2, worked out by hand for 32x32x3 and 10 classes
TRAINABLE = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize("depth", TRAINABLE)
def test_builders_have_the_papers_sizes(depth):
    model = getattr(resnet, f"build_resnet{depth}")()
    assert model.name == f"resnet{depth}"
    assert count(model.trainable_variables) == TRAINABLE[depth]
    assert count(model.non_trainable_variables) == 2 * (16 + 224 * (depth - 2) // 6)


BUILDERS = (
    *(getattr(resnet, name) for name in resnet.__all__ if name.startswith("build_")),
    build_inception_resnet_v1,
    build_inception_resnet_v1_small,
    build_lenet5,
    build_alexnet,
    build_plain_cnn,
    build_airbench,
)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_builders_show_their_arguments_and_say_what_they_are(build):
    parameters = inspect.signature(build).parameters
    assert {"weights", "include_top", "input_shape", "input_tensor", "pooling", "classes", "name"} <= set(parameters)
    assert not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    shown = pydoc.plain(pydoc.render_doc(build))
    assert f"{build.__name__}(" in shown
    arguments = shown[shown.index("Args:") : shown.index("Returns:")]
    described = re.findall(r"^ {8}(\w+): ", arguments, re.M)
    assert described == list(parameters)
    assert "Raises:" in shown and "Example:" in shown
    assert pickle.loads(pickle.dumps(build)) is build
    with pytest.raises(TypeError, match=rf"{build.__name__}\(\).* unexpected keyword argument 'clases'"):
        build(clases=10)


@pytest.mark.parametrize("build", [pytest.param(build, marks=pytest.mark.slow if re.search(r"resnet(32|44|56|110|164|1001)|_v1$", build.__name__) else ()) for build in BUILDERS], ids=lambda build: build.__name__)  # fmt: skip
def test_the_examples_of_builders_run(build, capsys):
    lines = inspect.getdoc(build).split("Example:\n", 1)[1].splitlines()
    example = "\n".join(itertools.takewhile(lambda line: not line or line.startswith("    "), lines))
    exec(textwrap.dedent(example), {})
    # What an example prints stands in a comment behind it.
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", example)


@pytest.mark.parametrize("name", ["20", "32", "44", "56", "110", "164_v2", "1001_v2"])
def test_named_builders_take_the_other_arguments_of_the_general_one(name):
    build = getattr(resnet, f"build_resnet{name}")
    expected = dict(inspect.signature(build_resnet).parameters)
    del expected["num_residual_blocks"], expected["form"]
    assert dict(inspect.signature(build).parameters) == expected
    with pytest.raises(TypeError, match=rf"build_resnet{name}\(\)"):
        build(10)


@pytest.mark.parametrize(("classes", "channels", "trainable"), [(100, 3, 269_722 + 5_850), (10, 1, 269_722 - 288)])
def test_other_classes_and_channels(classes, channels, trainable):
    assert count(build_resnet(input_shape=(28, 28, channels), classes=classes).trainable_variables) == trainable


def test_projection_shortcut_adds_its_weights():
    assert count(build_resnet(shortcut="B").trainable_variables) == 269_722 + 2_752
    assert count(build_resnet(shortcut="B").variables) == 271_098 + 2_944


@pytest.mark.parametrize("form", ["v1", "preact", "plain"])
@pytest.mark.parametrize("size", [(8, 8), (9, 15), (28, 28)])
def test_any_size_from_8(form, size):
    model = build_resnet(1, form, input_shape=(*size, 1), classes=3)
    probabilities = model(np.random.default_rng(0).random((2, *size, 1), np.float32)).numpy()
    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("form", ["v1", "preact", "plain"])
def test_save_and_load_with_plain_keras(form, tmp_path):
    model = build_resnet(1, form, preprocessing=PixelNormalization([120.0, 121.0, 122.0], 60.0))
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in model.layers)


def test_weights_from_files_and_their_refusal(tmp_path):
    model = build_resnet(1)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    for name in ("model.keras", "model.weights.h5"):
        again = build_resnet(1, weights=tmp_path / name)
        for expected, received in zip(model.get_weights(), again.get_weights(), strict=True):
            np.testing.assert_array_equal(expected, received)
    with pytest.raises(ValueError, match="layer stage1_block2_conv1 expects"):
        build_resnet(2, weights=tmp_path / "model.keras")
    with pytest.raises(
        ValueError, match=r"model\.weights\.h5 do not fit 'resnet14': .*; give a file of the same network"
    ):
        build_resnet(2, weights=tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match=r"existing \.keras or \.weights\.h5 file, received 'imagenet'"):
        build_resnet(1, weights="imagenet")


@pytest.mark.parametrize("kind", [".keras", ".weights.h5"])
def test_weights_that_fit_another_network_are_refused(kind, tmp_path):
    path = tmp_path / f"model{kind}"
    for other, layer in (({"form": "plain", "name": "mine"}, "stage1_block1_add"), ({"maxout": 2}, "maxout_pieces")):
        model = build_resnet(1, **other)
        (model.save if kind == ".keras" else model.save_weights)(path)
        with pytest.raises(ValueError, match=f"do not fit 'resnet8': one has a layer {layer}"):
            build_resnet(1, weights=path)
    assert build_resnet(1, weights=path, include_top=False).output_shape[-1] == 64
    # Each form of a network has weights of the same shapes in the same order.
    resnets = [functools.partial(build_resnet, 1, form, name="mine") for form in ("v1", "preact", "v2")]
    lenets = [functools.partial(build_lenet5, form, name="mine") for form in ("modern", "1998")]
    for build, other in (*itertools.permutations(resnets, 2), *itertools.permutations(lenets, 2)):
        path = tmp_path / f"{build.args}{build.func.__name__}{kind}"
        if not path.exists():
            model = build()
            (model.save if kind == ".keras" else model.save_weights)(path)
        with pytest.raises(ValueError, match="do not fit 'mine'"):
            other(weights=path)
    assert build(weights=path).count_params()


def test_rescaling_that_is_not_in_a_weights_file_is_missed(tmp_path):
    path = tmp_path / "model.weights.h5"
    scaling = keras.layers.Rescaling(1 / 255)
    build_resnet(1, preprocessing=scaling).save_weights(path)
    with pytest.raises(UsageError, match="without its constants; give that layer as preprocessing"):
        build_resnet(1, weights=path)
    build_resnet(1, weights=path, preprocessing=keras.layers.Rescaling(1 / 255))
    for build in (resnet.build_resnet9, WITH_FILES["inception"]):  # which have rescalings of their own
        build().save_weights(path)
        build(weights=path)


def test_numbers_of_numpy_are_numbers(tmp_path):
    options = {"squeeze_excitation": 4, "maxout": 2}
    expected = build_resnet(1, classes=5, widths=[16, 32, 64], **options)
    options = {name: np.int64(value) for name, value in options.items()}
    model = build_resnet(np.int64(1), classes=np.int64(5), widths=np.array([16, 32, 64]), **options)
    assert model.get_config() == expected.get_config()
    sizes = [resnet.build_resnet9(widths=widths).count_params() for widths in (np.array([16, 16, 32]), [16, 16, 32])]
    assert sizes[0] == sizes[1] < resnet.build_resnet9().count_params()
    for wrong in ({"widths": 16}, {"block_dropout": "0.1"}):
        with pytest.raises((UsageError, ValueError), match=f"{next(iter(wrong))} must be .* received"):
            build_resnet(1, **wrong)


def test_fixed_filters_stay_fixed():
    model = resnet.build_resnet9()
    trained = count(model.trainable_variables)
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert count(model.trainable_variables) == trained


def test_constants_may_be_arrays(tmp_path):
    pixels = PixelNormalization(np.float32([1, 2, 3]), np.ones(3))
    again = PixelNormalization.from_config(pixels.get_config())
    keras.Sequential([keras.Input((2, 2, 3)), pixels]).save(tmp_path / "x.keras")
    for layer in (pixels, again, keras.models.load_model(tmp_path / "x.keras")):
        np.testing.assert_array_equal(layer(np.ones((1, 2, 2, 3)))[0, 0, 0], [0, -1, -2])


WITH_FILES = {
    "resnet8": lambda **options: build_resnet(1, **options),
    "resnet9": resnet.build_resnet9,
    "airbench": build_airbench,
    "inception": lambda **options: build_inception_resnet_v1_small(modules=(1, 1, 1), **options),
    "lenet5": build_lenet5,
    "alexnet": lambda **options: build_alexnet("C", **options),
    "plain_cnn": build_plain_cnn,
}


@pytest.mark.parametrize(
    ("name", "per_image"),
    [
        ("resnet8", True),
        *(pytest.param(name, False, marks=() if name == "resnet9" else pytest.mark.slow) for name in WITH_FILES),
    ],
)
def test_a_file_brings_its_normalization(name, per_image, tmp_path):
    build = WITH_FILES[name]
    given = PixelNormalization(np.full((32, 32, 3), 120.5).tolist(), [60.1, 61.2, 62.3], per_image)
    model = build(preprocessing=given)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    expected = model(images)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    bare = build(weights=tmp_path / "model.keras", preprocessing=keras.layers.Identity())
    for file in ("model.keras", "model.weights.h5"):
        np.testing.assert_array_equal(build(weights=tmp_path / file)(images), expected, err_msg=file)
        other = build(weights=tmp_path / file, preprocessing=PixelNormalization(0.0, 255.0))
        np.testing.assert_array_equal(other(images), bare(images / np.float32(255)), err_msg=file)
        assert not np.allclose(other(images), expected, atol=1e-7)


@pytest.fixture(scope="module")
def files_of(tmp_path_factory):
    """name in `WITH_FILES` -> its model with a normalisation, and its files."""

    @functools.cache
    def make(name):
        model = WITH_FILES[name](preprocessing=PixelNormalization([120.5, 121.0, 122.0], [60.1, 61.2, 62.3]))
        folder = tmp_path_factory.mktemp(name)
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        return model, (folder / "model.keras", folder / "model.weights.h5")

    return make


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("airbench", "inception", "lenet5", "plain_cnn") else ())
        for name in WITH_FILES
    ],
)
class TestWeightsForOtherTasks:
    """What `keras.applications` does with its weights, every builder does with a file."""

    def test_other_classes_get_a_new_dense_layer_on_the_trained_network(self, name, files_of):
        model, files = files_of(name)
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
        expected = keras.Model(model.input, model.layers[-1].input)(images)
        for file in files:
            with pytest.warns(
                UserWarning, match="are of 10 classes, expected 3: the dense layer begins random"
            ) as warned:
                other = WITH_FILES[name](weights=file, classes=3)
            assert warned[0].filename == __file__  # who called the builder
            assert other(images).shape == (2, 3) and np.std(other.layers[-1].kernel) > 0
            np.testing.assert_array_equal(keras.Model(other.input, other.layers[-1].input)(images), expected)

    def test_other_sizes_without_the_dense_layers(self, name, files_of):
        model, files = files_of(name)
        images = np.random.default_rng(0).integers(0, 256, (2, 40, 48, 3), np.uint8)
        options = {"include_top": False, "input_shape": (40, 48, 3)}
        for file in files:
            large = WITH_FILES[name](weights=file, pooling=None, **options)
            assert len(large.output_shape) == 4
            for layer in large.layers:
                given = model.get_layer(layer.name).get_weights() if layer.weights else []
                for expected, received in zip(given, layer.get_weights(), strict=True):
                    np.testing.assert_array_equal(expected, received)
        maps = large(images)
        for pooling, reduce in (("avg", np.mean), ("max", np.max)):
            pooled = WITH_FILES[name](weights=files[0], pooling=pooling, **options)(images)
            factor = 9 if name in ("resnet9", "airbench") and pooling == "max" else 1
            np.testing.assert_allclose(pooled, reduce(maps, (1, 2)) / factor, rtol=1e-4, atol=1e-5)

    def test_on_a_tensor(self, name, files_of):
        model, files = files_of(name)
        photo = keras.Input((64, 64, 3))
        shrunk = keras.layers.Conv2D(3, 2, 2, name="shrink")(photo)
        part = np.random.default_rng(0).random((2, 64, 64, 3)).astype("float32") * 255
        for file in files:
            with pytest.warns(UserWarning, match="the dense layer begins random"):
                assert WITH_FILES[name](weights=file, input_tensor=shrunk, classes=3).output_shape == (None, 3)
            whole = WITH_FILES[name](weights=file, input_tensor=shrunk)
            assert whole.input is photo
            np.testing.assert_allclose(whole(part), model(keras.Model(photo, shrunk)(part)), rtol=1e-3, atol=1e-6)


def test_a_normalisation_within_a_model_of_a_weights_file_is_not_left_out(tmp_path):
    within = build_resnet(1, preprocessing=keras.Sequential([PixelNormalization(120.0, 60.0)]))
    within.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(UsageError, match="whose pixel normalisation is known"):
        build_resnet(1, weights=str(tmp_path / "m.weights.h5"))


def test_weights_of_several_heads_do_not_fill_one(tmp_path):
    heads = registry.find("resnet8").build(classes={"digit": 10, "kind": 2})
    heads.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="have the heads predictions_digit, predictions_kind, expected predictions"):
        build_resnet(1, weights=str(tmp_path / "m.weights.h5"))
    build_resnet(1).save(tmp_path / "one.keras")
    with pytest.warns(UserWarning, match="its heads begin random"):
        registry.find("resnet8").build(classes={"digit": 10, "kind": 2}, weights=str(tmp_path / "one.keras"))


def test_batch_renormalisation_is_refused():
    if "renorm" not in inspect.signature(keras.layers.BatchNormalization).parameters:
        pytest.skip("Keras has none yet")
    with pytest.raises(ValueError, match="renorm=True"):
        FusedBatchNormalization(renorm=True)


def test_each_head_of_several_is_new_where_its_classes_are_others():
    first, second = (registry.find("resnet8").build(classes={"digit": 10, "kind": count}) for count in (2, 5))
    assert find_new_heads(first, second) == {"predictions_kind": (2, 5)}
    copy_weights(first, second, find_new_heads(first, second))
    expected, received = (model.get_layer("predictions_digit").get_weights() for model in (first, second))
    np.testing.assert_array_equal(expected[0], received[0])
    assert find_new_heads(build_resnet(1), second) == {}
    with pytest.raises(ValueError, match="have the heads predictions, expected predictions_digit, predictions_kind"):
        copy_weights(build_resnet(1), second)


def test_layers_that_keras_named_are_copied_in_their_order(tmp_path):
    """Keras counts such names on within a process, so a second building has others than the first; a new process begins again."""

    def build(width=4):
        inputs = keras.Input((8, 8, 3))
        maps = keras.layers.Normalization()(inputs)
        maps = keras.layers.Conv2D(width, 3)(maps)
        maps = keras.layers.Conv2D(4, 3, name="own")(keras.layers.BatchNormalization()(maps))
        return keras.Model(inputs, keras.layers.BatchNormalization()(maps), name="small")

    first, second = build(), build()
    assert {layer.name for layer in first.layers} != {layer.name for layer in second.layers}
    rng = np.random.default_rng(0)
    first.set_weights([rng.random(weight.shape).astype(weight.dtype) for weight in first.get_weights()])
    copy_weights(first, second)
    for expected, received in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, received)
    first.save(tmp_path / "first.keras")
    third = build()
    load_backbone_weights(third, str(tmp_path / "first.keras"))
    np.testing.assert_array_equal(first.get_weights()[-1], third.get_weights()[-1])
    with pytest.raises(ValueError, match="layer Conv2D 0 expects"):
        copy_weights(first, build(5))


def test_a_head_of_another_width_is_not_taken_for_one_of_other_classes(files_of):
    """Of larger images the last layer of AlexNet C reads more features."""
    for file in files_of("alexnet")[1]:
        for classes in (10, 3):
            with pytest.raises(ValueError, match=r"predictions expects|do not fit"):
                build_alexnet("C", weights=file, input_shape=(64, 64, 3), classes=classes)


@pytest.mark.parametrize(
    "layer", [keras.layers.Rescaling(1 / 127.5, -1), keras.layers.Normalization(mean=120, variance=9.0)]
)
def test_a_file_brings_the_normalization_of_stock_keras(layer, tmp_path):
    model = build_resnet(1, preprocessing=layer)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8).astype(np.float32)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(build_resnet(1, weights=tmp_path / "model.keras")(images), model(images))


def test_a_file_behind_several_layers_asks_for_them_as_preprocessing(tmp_path):
    rescale, flip = keras.layers.Rescaling(1 / 127.5, -1), keras.layers.RandomFlip("horizontal")
    for number, parts in enumerate(
        ([rescale, keras.layers.Normalization(mean=0, variance=9.0)], [keras.Sequential([rescale])])
    ):
        image = start = keras.Input((32, 32, 3))
        for layer in parts:
            start = layer(start)
        model = build_resnet(1, input_tensor=start)
        model.save(tmp_path / f"{number}.keras")
        with pytest.raises(UsageError, match="behind one layer of pixel normalisation, received"):
            build_resnet(1, weights=tmp_path / f"{number}.keras")
        build_resnet(1, weights=tmp_path / f"{number}.keras", preprocessing=keras.layers.Identity())
    image = keras.Input((32, 32, 3))
    small = build_lenet5()
    keras.Sequential([keras.Input((32, 32, 3)), rescale, *small.layers[1:]], name="lenet5").save(
        tmp_path / "sequence.keras"
    )
    assert build_lenet5(weights=tmp_path / "sequence.keras").layers[1].scale == rescale.scale
    build_resnet(1, input_tensor=rescale(flip(image))).save(tmp_path / "flipped.keras")
    assert build_resnet(1, weights=tmp_path / "flipped.keras").layers[1].scale == rescale.scale


def test_weights_with_layers_that_the_network_lacks_are_refused():
    inception = build_inception_resnet_v1_small
    with pytest.raises(ValueError, match="which it lacks"):
        copy_weights(inception(modules=(1, 2, 1)), inception(modules=(1, 1, 1)))
    with pytest.raises(ValueError, match="which it lacks"):
        copy_weights(inception(modules=(1, 1, 2)), inception(modules=(1, 1, 1), include_top=False))
    with pytest.raises(ValueError, match="one has a layer relu1, which the other lacks"):
        copy_weights(build_lenet5("1998"), build_lenet5())


def test_a_normalization_given_to_two_networks_is_one_in_each():
    pixels = PixelNormalization(120.0, 60.0)
    models = [build_resnet(1, preprocessing=pixels) for _ in range(2)]
    assert models[0].layers[1] is pixels and models[1].layers[1] is not pixels
    assert len(fold_batch_norm(models[1]).layers) == len(fold_batch_norm(models[0]).layers)
    with pytest.raises(ValueError, match="preprocessing must be a layer or None, received 'cifar10'"):
        build_resnet(1, preprocessing="cifar10")


def test_images_that_the_constants_would_make_larger_are_refused():
    with pytest.raises(ValueError, match="expected images of the size of the constants"):
        PixelNormalization([1, 2, 3], [4, 5, 6])(np.zeros((2, 8, 8, 1)))
    unknown = tf.function(PixelNormalization(1.0, 2.0).call, input_signature=[tf.TensorSpec(None)])
    np.testing.assert_array_equal(unknown(np.full((2, 8, 8, 1), 5.0, np.float32)), np.full((2, 8, 8, 1), 2.0))


def test_weights_without_the_constants_of_their_normalization_are_refused(tmp_path):
    """Files written before the constants were kept in them."""
    path = tmp_path / "model.weights.h5"
    build_resnet(1, preprocessing=PixelNormalization(120.0, 60.0)).save_weights(path)
    with h5py.File(path, "a") as file:
        for name in list(file["layers/pixel_normalization/vars"]):
            del file["layers/pixel_normalization/vars"][name]
    with pytest.raises(
        ValueError, match=r"expected .*, received .*model\.weights\.h5.*; give that layer as preprocessing"
    ):
        build_resnet(1, weights=path)
    assert build_resnet(1, weights=path, preprocessing=PixelNormalization(120.0, 60.0)).layers[1].mean == 120.0


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
def test_damaged_weights_are_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"no such thing")
    with pytest.raises(ValueError, match=rf"{name} is damaged or no file of Keras .*; give another file"):
        build_resnet(1, weights=tmp_path / name)


def test_long_texts_of_keras_end_behind_a_word(tmp_path, monkeypatch):
    long = "Layer 'stage1' expected 3 variables,\n but received 0 variables during loading " * 5
    assert saved_models.shorten("two\n lines") == "two lines"
    for longest in range(60, 120):
        text = saved_models.shorten(long, longest)
        assert len(text) <= longest and text.endswith("...")
        assert long.replace("\n", "").startswith(text[:-3]) and long.replace("\n", "")[len(text) - 3] in " ,"
    assert saved_models.shorten("A whole sentence. " + "and so on " * 9, 30) == "A whole sentence. ..."
    assert saved_models.shorten("x" * 300) == "x" * 197 + "..."

    def fail(path):
        raise TypeError(long)

    monkeypatch.setattr(saved_models, "read_model", fail)
    (tmp_path / "model.keras").write_bytes(b"")
    with pytest.raises(UsageError, match=r"expected 3 variables, but\.\.\.\); give another file") as caught:
        saved_models.load_model(str(tmp_path / "model.keras"))
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_without_top_gives_64_features():
    assert build_resnet(1, include_top=False).output_shape == (None, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_residual_blocks": 0}, "num_residual_blocks must be an int >= 1, received 0"),
        ({"form": "v3"}, "form must be"),
        ({"form": "plain", "shortcut": "B"}, "shortcut must be"),
        ({"input_shape": (7, 32, 3)}, r"height >= 8.*received \(7, 32, 3\)"),
        ({"input_shape": 32}, "three whole numbers, received 32"),
        ({"input_shape": "abc"}, "three whole numbers, received 'abc'"),
        ({"input_shape": (32.0, 32, 3)}, r"three whole numbers, received \(32.0, 32, 3\)"),
        (
            {"weights": 5},
            "must be None, .*'cifar100', or the path of an existing .keras or .weights.h5 file, received 5",
        ),
        ({"classes": 0}, "classes must be an int >= 1"),
        ({"weights": "cifar10", "input_shape": (33, 32, 3)}, r"need input_shape .*received \(33, 32, 3\)"),
        (
            {"weights": "cifar10", "include_top": False, "input_shape": (32, 32, 1)},
            r"3 channels; received \(32, 32, 1\)",
        ),
        ({"weights": "cifar10", "preprocessing": PixelNormalization()}, "bring their own"),
        ({"pooling": "mean"}, "pooling must be None, 'avg' or 'max', received 'mean'"),
        ({"pooling": None, "include_top": False, "maxout": 2}, "maxout needs pooled features"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "input_tensor must be a Keras tensor"),
        ({"input_tensor": keras.Input((7, 7, 3))}, r"height >= 8.*received \(7, 7, 3\)"),
        ({"weights": "cifar10", "num_residual_blocks": 4}, "shipped for"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_resnet(**arguments)


def test_zero_weights_make_a_block_the_identity():
    """He 2015, Lu & Song, section 3: a residual block with zero weights passes its (non-negative) input on; a plain one does not."""
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    for form, identity in (("v1", True), ("preact", True), ("plain", False)):
        model = build_resnet(2, form, input_shape=(16, 16, 3))
        end = "stage1_block2_relu2" if form != "preact" else "stage1_block2_add"
        start = end.replace("block2", "block1")
        for name in ("conv1", "conv2"):
            layer = model.get_layer(f"stage1_block2_{name}")
            layer.set_weights([np.zeros_like(weight) for weight in layer.get_weights()])
        before, after = keras.Model(model.input, [model.get_layer(start).output, model.get_layer(end).output])(images)
        assert np.any(before) and np.allclose(before, after) == identity, form


def test_strided_convolution_and_shortcut_share_one_grid():
    """The first convolution of stage 2 is centred on the even pixels that the shortcut keeps."""
    model = build_resnet(1, "v1", input_shape=(8, 8, 3))
    conv = model.get_layer("stage2_block1_conv1")
    kernel = np.zeros((3, 3, 16, 32), np.float32)
    kernel[1, 1, 0, 0] = 1  # the centre of the kernel copies channel 0
    conv.set_weights([kernel])
    stem = model.get_layer("stage1_block1_relu2").output
    inputs = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    given, strided, shortcut = keras.Model(
        model.input, [stem, conv.output, model.get_layer("stage2_block1_shortcut").output]
    )(inputs)
    np.testing.assert_allclose(strided[..., 0], given[:, ::2, ::2, 0], rtol=1e-6)
    np.testing.assert_allclose(shortcut[..., 8:24], given[:, ::2, ::2], rtol=1e-6)
    assert not np.any(shortcut[..., :8]) and not np.any(shortcut[..., 24:])


@pytest.mark.parametrize("scale", [True, False])
def test_fused_batch_normalization_equals_the_plain_layer(scale):
    rng = np.random.default_rng(0)
    images, weights = (
        rng.normal(2, 3, (8, 5, 6, 4)).astype(np.float32),
        rng.normal(size=(8, 5, 6, 4)).astype(np.float32),
    )
    kinds = (keras.layers.BatchNormalization, FusedBatchNormalization)
    layers = [kind(momentum=0.9, epsilon=1e-5, scale=scale) for kind in kinds]
    results = []
    for layer in layers:
        layer.build(images.shape)
        layer.set_weights(
            [rng.normal(size=4) ** 2 + 0.5 for _ in layer.weights] if not results else layers[0].get_weights()
        )
        start = layer.get_weights()
        inputs = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = layer(inputs, training=True)
            loss = tf.reduce_sum(output * weights)
        gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
        results.append([output, *gradients, *layer.get_weights(), layer(images, training=False)])
        layer.set_weights(start)
    for expected, received in zip(*results, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("policy", ["bfloat16", "float16", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("scale", [True, False])
def test_fused_batch_normalization_in_half_precision(policy, scale):
    rng = np.random.default_rng(0)
    images = rng.normal(2, 3, (8, 5, 6, 4)).astype(np.float32)
    factors = tf.constant(rng.normal(size=images.shape), tf.float32)
    results = []
    for dtype in ("float32", policy):
        layer = FusedBatchNormalization(momentum=0.5, epsilon=1e-5, scale=scale, dtype=keras.DTypePolicy(dtype))
        inputs = tf.constant(images)
        layer.build(images.shape)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            output = layer(inputs, training=True)
            loss = tf.reduce_sum(tf.cast(output, tf.float32) * factors)
        gradients = tape.gradient(loss, [inputs, *layer.trainable_variables])
        assert output.dtype == layer.compute_dtype and not any(gradient is None for gradient in gradients)
        assert all(weight.dtype == layer.variable_dtype for weight in layer.weights)
        values = [output, layer(inputs, training=False), *gradients, *layer.weights]
        results.append([np.asarray(keras.ops.cast(value, "float32")) for value in values])
    for expected, received in zip(*results, strict=True):
        np.testing.assert_allclose(received, expected, rtol=0.02, atol=0.05)


def test_a_network_of_float64_computes():
    images = np.random.default_rng(0).random((2, 16, 16, 3))
    for training in (False, True):
        assert np.isfinite(build_resnet(1, dtype="float64", input_shape=(16, 16, 3))(images, training=training)).all()


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "build", [*(functools.partial(build_resnet, 1, form) for form in resnet.FORMS), resnet.build_resnet9]
)
def test_networks_in_pure_half_precision(build, policy):
    model = build(dtype=policy, input_shape=(16, 16, 3))  # TensorFlow computes float16 slowly
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    with tf.GradientTape() as tape:
        loss = -tf.reduce_mean(tf.math.log(model(images, training=True)[:, 1] + 1e-6))
    gradients = tape.gradient(loss, model.trainable_variables)
    assert all(np.isfinite(np.asarray(keras.ops.cast(gradient, "float32"))).all() for gradient in gradients)
    assert np.isfinite(model(images, training=False)).all()
    # The dense layer is float32 in every network.
    assert {weight.dtype for weight in model.trainable_variables} == {policy, "float32"}


def test_fused_batch_normalization_when_frozen_keeps_its_statistics():
    layer = FusedBatchNormalization()
    images = np.random.default_rng(0).normal(5, 2, (4, 3, 3, 2)).astype(np.float32)
    layer.build(images.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(images, training=True), layer(images, training=False))
    np.testing.assert_array_equal(layer.moving_mean, [0, 0])


def test_fused_batch_normalization_refuses_what_it_lacks():
    with pytest.raises(ValueError, match=r"use keras\.layers\.BatchNormalization"):
        FusedBatchNormalization(center=False)


def test_a_fused_model_has_the_gradients_of_plain_layers():
    """Same weights, same batch, float64 as the judge: the gradients of fused float32 layers are close."""
    keras.utils.set_random_seed(0)
    fused = build_resnet(1, classifier_activation=None, dtype="float32")

    def as_plain(layer, dtype):
        config = layer.get_config() | {"dtype": dtype}
        if isinstance(layer, FusedBatchNormalization):
            return keras.layers.BatchNormalization.from_config(config)
        return type(layer).from_config(config)

    plain = keras.models.clone_model(fused, clone_function=lambda layer: as_plain(layer, "float64"))
    plain.set_weights(fused.get_weights())
    images = np.random.default_rng(0).normal(size=(32, 32, 32, 3))
    labels = np.arange(32) % 10
    gradients = []
    for model, dtype in ((plain, "float64"), (fused, "float32")):
        with tf.GradientTape() as tape:
            logits = model(images.astype(dtype), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradients.append(tape.gradient(loss, model.trainable_variables))
    for expected, received in zip(*gradients, strict=True):
        expected, received = np.asarray(expected, np.float64), np.asarray(received, np.float64)
        # Below 1e-3 with several threads. With one thread for each operation, as in towers, the fused operation adds all values up in a
        # row: 2.2e-3.
        assert np.linalg.norm(received - expected) <= 4e-3 * np.linalg.norm(expected)


def test_zero_channels_stand_on_both_sides():
    padded = ZeroPadChannels(7)(np.ones((1, 2, 2, 3), np.float32)).numpy()
    assert padded[0, 0, 0].tolist() == [0, 0, 1, 1, 1, 0, 0]


SHIPPED = [resnet.build_resnet20, functools.partial(build_resnet, 3, "preact"), resnet.build_resnet9]


@pytest.mark.parametrize("build", SHIPPED)
class TestShippedWeightsForOtherTasks:
    def test_other_classes_get_a_new_dense_layer_on_the_trained_network(self, build):
        images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
        whole = build(weights="cifar10")
        with pytest.warns(UserWarning, match="are of 10 classes, expected 3"):
            other = build(weights="cifar10", classes=3)
        assert other.output_shape == (None, 3)
        features = [keras.Model(model.input, model.layers[-1].input)(images) for model in (whole, other)]
        np.testing.assert_array_equal(*features)
        assert np.std(other.layers[-1].kernel) > 0

    def test_other_sizes_without_the_dense_layer(self, build):
        images = np.random.default_rng(0).integers(0, 256, (2, 64, 48, 3), np.uint8)
        large = build(weights="cifar10", include_top=False, input_shape=(64, 48, 3))
        small = build(weights="cifar10", include_top=False)
        for expected, received in zip(small.get_weights(), large.get_weights(), strict=True):
            np.testing.assert_array_equal(expected, received)
        assert large(images).shape == small(images[:, :32, :32]).shape
        assert large.get_layer("normalization").mean == small.get_layer("normalization").mean


def test_shipped_weights_on_a_tensor(tmp_path):
    build = resnet.build_resnet20
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    whole = build(weights="cifar10")
    whole.save_weights(tmp_path / "model.weights.h5")
    start = keras.Input((32, 32, 3), name="mine", dtype="uint8")
    assert build(weights="cifar10", input_tensor=start).input is start
    np.testing.assert_array_equal(build(weights="cifar10", input_tensor=start)(images), whole(images))
    photo = keras.Input((64, 64, 3))
    shrunk = keras.layers.Conv2D(3, 2, 2, name="shrink")(photo)
    for weights in ("cifar10", tmp_path / "model.weights.h5"):
        model = build(weights=weights, input_tensor=shrunk)
        assert model.input is photo
        kernel, bias = model.get_layer("shrink").get_weights()
        part = np.random.default_rng(0).random((2, 64, 64, 3)).astype("float32") * 255
        expected = whole(keras.Model(photo, shrunk)(part))
        np.testing.assert_allclose(model(part), expected, rtol=1e-4, atol=1e-6)
        assert (kernel.shape, bias.shape) == ((2, 2, 3, 3), (3,))
        model.save(tmp_path / "whole.keras")
        np.testing.assert_allclose(
            keras.models.load_model(tmp_path / "whole.keras")(part), expected, rtol=1e-4, atol=1e-6
        )


def test_constants_for_each_pixel_need_images_of_their_size(tmp_path):
    model = build_resnet(1, preprocessing=PixelNormalization(np.full((32, 32, 3), 120.0).tolist(), 60.0))
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"PixelNormalization, \(32, 32, 3\), received \(40, 40, 3\); give"):
        build_resnet(1, weights=tmp_path / "model.keras", include_top=False, input_shape=(40, 40, 3))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sigmoid_gelu_and_its_gradient_by_hand(dtype):
    values = np.linspace(-4, 4, 33)
    inputs = tf.constant(values, dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = sigmoid_gelu(inputs)
    gate = 1 / (1 + np.exp(-1.702 * values))
    tolerance = {"float32": 1e-6, "bfloat16": 0.03}[dtype]
    np.testing.assert_allclose(outputs, values * gate, atol=tolerance)
    np.testing.assert_allclose(outputs, keras.ops.gelu(values), atol=0.021 + tolerance)
    gradient = tape.gradient(outputs, inputs, 3 * tf.ones_like(inputs))
    np.testing.assert_allclose(gradient, 3 * gate * (1 + 1.702 * values * (1 - gate)), atol=3 * tolerance)


class TestResnet9:
    def test_has_the_documented_parameters_and_map_sizes(self):
        model = resnet.build_resnet9()
        trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert trainable == registry.find("resnet9").trainable == 3188450
        shapes = [model.get_layer(name).output.shape[1:] for name in ("stem_relu", "stage1_relu", "stage2_relu")]
        assert shapes == [(31, 31, 24), (15, 15, 64), (7, 7, 256)]
        assert model.get_layer("stage3_block1_2_relu").output.shape[1:] == (3, 3, 256)

    def test_kernels_begin_as_copies_of_their_channels(self):
        rng = np.random.default_rng(0)
        images = np.abs(rng.normal(size=(2, 8, 8, 5))).astype("float32")
        for filters in (3, 9):
            layer = keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=layers.PartialIdentity(seed=1))
            outputs = np.asarray(layer(images))
            copied = min(filters, 5)
            np.testing.assert_array_equal(outputs[..., :copied], images[..., :copied])
            assert filters == 3 or np.abs(layer.kernel[..., 5:]).max() == pytest.approx(1 / np.sqrt(9 * 5), rel=0.05)

    def test_says_which_inputs_are_too_small(self):
        with pytest.raises(ValueError, match="height >= 16"):
            resnet.build_resnet9(input_shape=(15, 32, 3))
        with pytest.raises(ValueError, match="classes must be an int >= 1, received 0"):
            resnet.build_resnet9(classes=0)

    def test_whitening_makes_the_pixels_of_a_patch_uncorrelated(self):
        rng = np.random.default_rng(0)
        noise = rng.normal(size=(1200, 9, 9, 3)).astype("float32")
        noise[600:, ..., 0] *= 2  # patches are summed in pieces
        images = noise + np.roll(noise, 1, axis=1) + 0.5 * noise[..., :1]  # neighbours and channels hang together
        layer = layers.PatchWhitening(3)
        layer(images[:1])
        layer.adapt(images)
        outputs = np.asarray(layer(images))
        assert outputs.shape == (1200, 8, 8, 24)
        np.testing.assert_allclose(outputs[..., 12:], -outputs[..., :12], atol=1e-4)
        covariance = np.cov(outputs[..., :12].reshape(-1, 12), rowvar=False)
        np.testing.assert_allclose(covariance, np.eye(12), atol=0.02)
        assert [weight.name for weight in layer.trainable_weights] == ["bias"]
        grey = layers.PatchWhitening(1)
        grey(images[:1, ..., :1])
        assert grey.trainable_weights == []

    def test_the_whitening_filters_are_of_training_images_and_a_saved_model_keeps_them(self, tmp_path):
        trainer = Train(tiny(tmp_path, model="resnet9", train_steps=1, report_freq=1, train_batch_size=8))
        trainer.task.begin(trainer.model, resumed=False)
        expected = layers.PatchWhitening(3)
        images = trainer.task.normalization(trainer.task.training.images[:5000])
        expected(images[:1])
        expected.adapt(images)
        trainer._user_model.save(trainer.stage, tmp_path / "model.keras")
        kept = keras.models.load_model(tmp_path / "model.keras").get_layer("stem_whitening")
        np.testing.assert_allclose(kept.kernel, expected.kernel, atol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "form", "trainable", "fixed"),
    [
        (18, "bottleneck_v2", 1_703_258, 24_224),
        (3, "v2", 269_722, 1_376),
        pytest.param(18, "v2", 1_727_962, 8_096, marks=pytest.mark.slow),
    ],
)
def test_preactivation_networks_have_the_papers_sizes(blocks, form, trainable, fixed):
    model = build_resnet(blocks, form)
    assert count(model.trainable_variables) == trainable
    assert count(model.non_trainable_variables) == fixed


def test_names_and_features_of_preactivation_networks():
    assert build_resnet(1, "bottleneck_v2", include_top=False).output_shape == (None, 256)
    assert build_resnet(1, "bottleneck_v2").name == "resnet11_v2"
    assert build_resnet(1, "v2").name == "resnet8_v2"
    assert count(build_resnet(3, "v2", shortcut="B").trainable_variables) == 269_722 + 2_560


@pytest.mark.slow
def test_resnet_1001():
    assert resnet.build_resnet164_v2().name == "resnet164_v2"
    model = resnet.build_resnet1001_v2()
    assert model.name == "resnet1001_v2"
    assert count(model.trainable_variables) == 10_327_706
    assert model.count_params() == 10_476_922


@pytest.mark.parametrize("form", ["v2", "bottleneck_v2"])
def test_preactivation_blocks_add_to_an_untouched_path(form):
    """He 2016, equation 7: behind the first block of a stage, what a block gives is what it got plus its branch, with no ReLU."""
    model = build_resnet(2, form, input_shape=(8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    last = "conv3" if form == "bottleneck_v2" else "conv2"
    names = ["stage2_block1_add", f"stage2_block2_{last}", "stage2_block2_add"]
    given, branch, sums = keras.Model(model.input, [model.get_layer(name).output for name in names])(images)
    np.testing.assert_allclose(sums, given + branch, rtol=1e-5)
    assert np.any(given < 0)
    # A stage begins: both branches read the same BN-ReLU, and the shortcut stands on the grid of the strided convolution.
    shared = model.get_layer("stage2_block1_relu1").output
    readers = [node.operation.name for node in model.get_layer("stage2_block1_relu1")._outbound_nodes]
    assert len(readers) == 2 and shared.shape[1] == 8 and given.shape[1] == 4


# options: trainable parameters that each adds to a v1 network with one block a stage (16, 32, 64 channels), worked out by hand
OPTIONS = {
    "squeeze_excitation": (4, sum(2 * c * (c // 4) + c // 4 + c for c in (16, 32, 64))),
    "block_dropout": (0.3, 0),
    "stochastic_depth": (0.5, 0),
    "zero_last_gamma": (True, 0),
    "maxout": (2, 64 * 128 + 128),
}


@pytest.fixture(scope="module")
def plain_and_optional():
    """A ResNet-8 and one with each option, with the weights of the first where they have them."""
    keras.utils.set_random_seed(0)
    model = build_resnet(1)
    return model, {option: build_resnet(1, **{option: value}) for option, (value, _) in OPTIONS.items()}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_add_what_they_should_and_nothing_when_off(option, plain_and_optional):
    plain, optional = plain_and_optional
    assert count(optional[option].trainable_variables) - count(plain.trainable_variables) == OPTIONS[option][1]
    off = build_resnet(1, **{option: type(OPTIONS[option][0])(0)})
    assert [layer.get_config() for layer in off.layers] == [layer.get_config() for layer in plain.layers]


@pytest.mark.parametrize("option", ["block_dropout", "stochastic_depth"])
def test_dropping_changes_training_only(option, plain_and_optional):
    plain, optional = plain_and_optional
    copy_weights(plain, optional[option])
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    np.testing.assert_array_equal(optional[option](images, training=False), plain(images, training=False))
    first, second = (optional[option](images, training=True).numpy() for _ in range(2))
    assert not np.allclose(first, second)


def test_stochastic_depth_leaves_out_whole_branches_more_often_when_deeper():
    model = build_resnet(2, stochastic_depth=0.6, input_shape=(8, 8, 3))
    dropped = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    np.testing.assert_allclose([layer.rate for layer in dropped], np.arange(1, 7) * 0.1)
    passed = dropped[-1](np.ones((2000, 2, 2, 64), np.float32), training=True).numpy().reshape(2000, -1)
    alive = passed.any(axis=1)
    assert 0.35 < alive.mean() < 0.45
    np.testing.assert_allclose(passed[alive], 1 / 0.4, rtol=1e-6)


def test_zero_last_gamma_makes_blocks_begin_as_identities():
    model = build_resnet(2, zero_last_gamma=True, input_shape=(8, 8, 3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    outputs = [model.get_layer(name).output for name in ("stem_relu", "stage1_block2_relu2")]
    given, passed = keras.Model(model.input, outputs)(images)
    np.testing.assert_array_equal(given, passed)


def test_maxout_takes_the_largest_of_its_pieces(plain_and_optional):
    _, optional = plain_and_optional
    model = optional["maxout"]
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    names = ("average_pool", "maxout")
    pooled, units = keras.Model(model.input, [model.get_layer(name).output for name in names])(images)
    kernel, bias = model.get_layer("maxout_pieces").get_weights()
    pieces = (pooled.numpy() @ kernel + bias).reshape(3, 2, 64)
    np.testing.assert_allclose(units, pieces.max(axis=1), rtol=1e-4, atol=1e-6)


def test_squeeze_and_excitation_by_hand(plain_and_optional):
    _, optional = plain_and_optional
    model = optional["squeeze_excitation"]
    images = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    names = ("stage2_block1_bn2", "stage2_block1_se_scale")
    maps, scaled = (
        array.numpy() for array in keras.Model(model.input, [model.get_layer(name).output for name in names])(images)
    )
    (reduce, reduce_bias), (expand, expand_bias) = (
        model.get_layer(f"stage2_block1_se_{name}").get_weights() for name in ("reduce", "expand")
    )
    hidden = np.maximum(maps.mean(axis=(1, 2)) @ reduce + reduce_bias, 0)
    gate = 1 / (1 + np.exp(-(hidden @ expand + expand_bias)))
    np.testing.assert_allclose(scaled, maps * gate[:, None, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"squeeze_excitation": -1}, "squeeze_excitation must be 0 or an int >= 1"),
        ({"maxout": 1}, "maxout must be 0 or an int >= 2"),
        ({"block_dropout": 1.0}, "block_dropout must be at least 0 and below 1"),
        ({"form": "plain", "stochastic_depth": 0.1}, "needs a network with shortcuts"),
        ({"form": "v2", "zero_last_gamma": True}, "zero_last_gamma needs form 'v1'"),
        ({"form": "bottleneck_v2", "shortcut": "A"}, "shortcut must be B with form 'bottleneck_v2'"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_resnet(**arguments)


def test_type_checkers_know_the_arguments_of_the_builders():
    for builder in (resnet.build_resnet20, resnet.build_resnet164_v2):
        assert list(ResNetOptions.__annotations__) == list(inspect.signature(builder).parameters)


def test_sums_have_the_precision_that_is_asked_for_whatever_the_global_policy_is():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for form in ("preact", "v2"):
            model = build_resnet(1, form=form, dtype="float32")
            assert {layer.compute_dtype for layer in model.layers[1:]} == {"float32"}  # without the input
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_layer_that_another_network_has_is_copied():
    scaled = keras.layers.Rescaling(1 / 255)
    first, second = (build_resnet(1, preprocessing=scaled) for _ in range(2))
    assert first.layers[1] is scaled and second.layers[1] is not scaled
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    second.set_weights(first.get_weights())
    np.testing.assert_allclose(fold_batch_norm(second, "float32")(images), first(images), atol=1e-5)
    own = keras.layers.Lambda(lambda pixels: pixels / 255)  # of which no copy can be made
    assert [build_resnet(1, preprocessing=own).layers[1] for _ in range(2)] == [own, own]


def test_weights_of_other_pixels_are_told(tmp_path):
    trained = build_resnet(1, preprocessing=PixelNormalization(120.0, 60.0))
    trained.save_weights(tmp_path / "a.weights.h5")
    with pytest.warns(UserWarning, match="pixels normalised by other constants"):
        build_resnet(1, preprocessing=PixelNormalization(0.0, 255.0)).load_weights(tmp_path / "a.weights.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        build_resnet(1, preprocessing=PixelNormalization(120.0, 60.0)).load_weights(tmp_path / "a.weights.h5")
        trained.save(tmp_path / "a.keras")
        keras.saving.load_model(tmp_path / "a.keras")


def test_patches_are_whitened_of_images_that_the_layer_takes():
    whitening = layers.PatchWhitening(3)
    whitening.build((None, 16, 16, 3))
    for shape in ((4, 16, 16, 1), (0, 16, 16, 3), (16, 16, 3)):
        with pytest.raises(ValueError, match=r"images must be \[n, height, width, 3\]"):
            whitening.adapt(np.zeros(shape))
