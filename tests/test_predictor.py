"""A prepared model answers as the model itself, whatever the number of images, heads and cores."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import resnet
from hyper_parameters import from_preset
from resnet_study import devices, predictor
from resnet_study.environment import has_onednn
from resnet_study.errors import UsageError
from resnet_study.exporting.plain_keras import make_plain
from resnet_study.networks import registry
from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.layers import PixelNormalization
from resnet_study.networks.weights import has_normalization
from resnet_study.predictor import Predictor
from resnet_study.saved_models import load_model


def small_model(**options):
    """A network with moving statistics that are not those of its start."""
    keras.utils.set_random_seed(0)
    model = resnet.build_resnet(
        1, input_shape=(16, 16, 3), preprocessing=PixelNormalization(120.0, 60.0, name="normalization"), **options
    )
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (rng.uniform(0.5, 1.5, weight.shape) for weight in layer.weights)
            layer.set_weights([gamma, beta - 1, mean - 1, variance])
    return model


def some_images(count, kind=np.uint8):
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3)).astype(kind)


@pytest.mark.parametrize(("towers", "kind"), [(1, np.uint8), (2, np.float64), (3, np.int32)])
def test_answers_are_those_of_the_model(monkeypatch, towers, kind):
    monkeypatch.setattr(devices, "count_inference_towers", lambda: towers)
    model, images = small_model(), some_images(11, kind)
    answers = Predictor(model).predict(images, batch_size=6)
    np.testing.assert_allclose(answers, model(images, training=False), atol=2e-6)
    assert answers.dtype == np.float32


def test_each_head_answers(monkeypatch):
    monkeypatch.setattr(devices, "count_inference_towers", lambda: 2)
    model = registry.find("resnet8").build(input_shape=(16, 16, 3), classes={"kind": 2, "name": 7})
    answers, expected = Predictor(model).predict(some_images(5), batch_size=4), model(some_images(5), training=False)
    assert answers.keys() == expected.keys()
    for head, values in answers.items():
        np.testing.assert_allclose(values, expected[head], atol=2e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_weights_of_small_models_are_constants(monkeypatch, precision):
    """A single image does not wait for oneDNN to bring them into its own order; graphs hold those of large models too often."""
    model, images = small_model(), some_images(5)
    small = Predictor(model, precision)
    monkeypatch.setattr(predictor, "_LARGEST_CONSTANTS", 100_000)
    large = Predictor(model, precision)
    np.testing.assert_allclose(
        small.predict(images), large.predict(images), atol=2e-6 if precision == "float32" else 0.02
    )
    taken = [len(made._answer.get_concrete_function(images, 1).captured_inputs) for made in (small, large)]
    assert taken == [0 if has_onednn() else 16, 16]  # kernel and bias of each convolution and of the dense layer


def test_no_images_have_no_answers():
    assert Predictor(small_model()).predict(some_images(0)).shape == (0, 10)


def test_a_model_that_cannot_be_folded_says_so_and_answers_in_float32_alone(capsys):
    twice = keras.layers.Conv2D(3, 3, padding="same")
    inputs = keras.Input((16, 16, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(twice(twice(inputs)))
    model = keras.Model(inputs, keras.layers.Softmax()(pooled))
    images = some_images(4)
    np.testing.assert_allclose(Predictor(model).predict(images), model.predict(images, verbose=0), atol=1e-6)
    assert "answers as it is, which is slower: its batch norm cannot be folded" in capsys.readouterr().out
    with pytest.raises(ValueError, match="uses each layer once"):
        Predictor(model, "bfloat16")
    rounded = keras.layers.Conv2D(3, 3, padding="same", dtype="mixed_bfloat16")
    pooled = keras.layers.GlobalMaxPooling2D()(rounded(rounded(inputs)))
    Predictor(keras.Model(inputs, keras.layers.Softmax()(pooled)))
    assert "answers in bfloat16 as it is: its batch norm" in capsys.readouterr().out


def test_the_second_call_builds_nothing():
    predictor, images = Predictor(small_model()), some_images(4)
    predictor.predict(images)
    built = predictor._answer.experimental_get_tracing_count()
    predictor.predict(images)
    assert predictor._answer.experimental_get_tracing_count() == built


@pytest.mark.parametrize(
    ("of_an_operation", "operations", "towers"),
    [(1, 0, 4), (1, 2, 2), (2, 4, 2), (3, 4, 1), (4, 2, 1), (0, 0, 1), (0, 4, 1)],
)
def test_cores_share_a_batch_where_the_threads_of_an_operation_were_set(
    monkeypatch, of_an_operation, operations, towers
):
    """As by `choose_towers` on machines with more cores than towers, and by `share_batches`."""
    monkeypatch.setattr(devices, "count_cores", lambda: 4)
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: of_an_operation)
    monkeypatch.setattr(tf.config.threading, "get_inter_op_parallelism_threads", lambda: operations)
    assert devices.count_inference_towers() == towers


def test_cores_share_a_batch_of_any_size(monkeypatch):
    monkeypatch.setattr(devices, "count_inference_towers", lambda: 2)
    predictor, shared = Predictor(small_model()), []
    answer = predictor._answer
    predictor._answer = lambda images, towers: shared.append(towers) or answer(images, towers)
    expected = Predictor(small_model()).predict(some_images(11))
    np.testing.assert_allclose(predictor.predict(some_images(11), 5), expected, atol=1e-6)
    assert shared == [2, 2, 1]


def test_a_process_that_only_answers_gives_each_operation_one_thread(monkeypatch, capsys):
    chosen = []
    monkeypatch.setattr(tf.config.threading, "set_intra_op_parallelism_threads", lambda count: chosen.append(count))
    monkeypatch.setattr(tf.config.threading, "set_inter_op_parallelism_threads", lambda count: chosen.append(count))
    devices.share_batches()
    assert chosen == [1, devices.count_cores()]
    monkeypatch.undo()
    tf.zeros(1) + 1  # TensorFlow has computed: too late
    devices.share_batches()
    assert capsys.readouterr() == ("", "")


def test_scaled_pixels_are_told(recwarn):
    predictor = Predictor(small_model())
    with pytest.warns(UserWarning, match="0..255"):
        predictor.predict(some_images(2) / 255)
    with pytest.warns(UserWarning, match="scaled to 0..1"):
        predictor.predict(some_images(2) > 127)
    recwarn.clear()
    predictor.predict(some_images(2, np.float32))
    predictor.predict(np.zeros((2, 16, 16, 3)))  # black
    predictor.predict(np.ones((2, 16, 16, 3), np.uint8))
    assert not [warning for warning in recwarn if "pixels" in str(warning.message)]
    for images in (some_images(2, np.float32) - 200, some_images(2, np.uint16) * 256):
        with pytest.warns(UserWarning, match="expected raw pixels 0..255"):
            predictor.predict(images)
    with pytest.warns(UserWarning, match="expected raw pixels 0..255, received -1 .. "):
        predictor.predict(some_images(2) / 127.5 - 1)


@pytest.mark.parametrize("build", [functools.partial(resnet.build_resnet, 1), resnet.build_resnet9])
def test_pixels_of_a_network_without_normalization_are_those_of_its_training(build, recwarn):
    Predictor(build(input_shape=(16, 16, 3))).predict(some_images(2) / 255)
    assert not [warning for warning in recwarn if "pixels" in str(warning.message)]


def test_what_stands_before_a_network_is_seen_whatever_it_is():
    inputs = keras.Input((16, 16, 3))

    def normalizes(before, *, within=False):
        x = before(inputs)
        network = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(2, 3), keras.layers.Rescaling(0.1)])
        x = network(x) if within else keras.layers.Rescaling(1 / 9)(keras.layers.Conv2D(2, 3)(x))
        return has_normalization(keras.Model(inputs, x))

    turned = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.RandomFlip()])
    for nothing in (
        lambda x: x,
        turned,
        keras.layers.AveragePooling2D(1),
        lambda x: keras.ops.cast(x, "float32")[..., ::-1],
    ):
        assert not normalizes(nothing) and not normalizes(nothing, within=True)
    for something in (
        keras.applications.mobilenet_v2.preprocess_input,
        keras.layers.BatchNormalization(),
        keras.layers.Lambda(lambda x: x / 255),
        lambda x: keras.layers.Rescaling(1 / 255)(turned(x)),
        keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Normalization(mean=1.0, variance=2.0)]),
    ):
        assert normalizes(something) and normalizes(something, within=True)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((16, 16, 3), r"one image is images\[None\]; "),
        ((2, 3, 16, 16), r"channels come last, as in images.transpose\(0, 2, 3, 1\); "),
        ((2, 8, 8, 3), ""),
    ],
)
def test_images_of_another_shape_are_told_with_what_helps(shape, hint):
    with pytest.raises(UsageError, match=rf"received \({', '.join(map(str, shape))}\); {hint}give such"):
        Predictor(small_model()).predict(np.zeros(shape, np.uint8))


def test_what_cannot_be_answered_is_refused():
    predictor, images = Predictor(small_model()), np.zeros((2, 16, 16, 3))
    for batch_size in (-1, 0, 1.5):
        with pytest.raises(UsageError, match=f"batch_size must be an int >= 1, received {batch_size}"):
            predictor.predict(images, batch_size)
    for number in (1e300, np.nan):
        with pytest.raises(UsageError, match="received NaN or infinity"):
            predictor.predict(images + number)
    with pytest.raises(UsageError, match="an array of numbers, received one of object"):
        predictor.predict(images.astype(object))
    inputs = keras.Input((None, None, 3))
    open_sized = keras.Model(inputs, keras.layers.Softmax()(keras.layers.GlobalAveragePooling2D()(inputs)))
    with pytest.raises(UsageError, match=r"images of one size, .*received \(None, None, None, 3\); build it on"):
        Predictor(open_sized)


def test_a_model_is_a_model_or_a_path(tmp_path):
    small_model().save(tmp_path / "model.keras")
    assert Predictor(tmp_path / "model.keras").predict(some_images(2)).shape == (2, 10)
    with pytest.raises(UsageError, match="or the path of one, received int"):
        Predictor(3)
    with pytest.raises(UsageError, match="auto, float32 or bfloat16, received 'float16'"):
        Predictor(small_model(), precision="float16")


def test_an_empty_runs_dir_is_not_the_root():
    with pytest.raises(UsageError, match="--runs_dir must be a folder, received ''"):
        from_preset("smoke", runs_dir="")


def test_adapted_normalisation_of_stock_keras_is_in_every_copy(tmp_path):
    norm = keras.layers.Normalization()
    norm.adapt(some_images(20).astype(np.float32))
    model = resnet.build_resnet(1, input_shape=(16, 16, 3), preprocessing=norm)
    expected = model.predict(some_images(4).astype(np.float32), verbose=0)
    np.testing.assert_allclose(Predictor(model).predict(some_images(4)), expected, atol=1e-5)
    np.testing.assert_allclose(make_plain(model)(some_images(4).astype(np.float32)), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = resnet.build_resnet(1, input_shape=(16, 16, 3), weights=tmp_path / "model.keras")
    np.testing.assert_allclose(Predictor(again).predict(some_images(4)), expected, atol=1e-5)


def test_float32_is_float32_whatever_the_model_computes_in():
    model = resnet.build_resnet(1, dtype="mixed_bfloat16")
    copies = [fold_batch_norm(model), make_plain(model)]
    assert {layer.compute_dtype for copy in copies for layer in copy.layers} == {"float32"}


def test_a_sequence_of_layers_is_a_model(tmp_path):
    body = resnet.build_resnet(1, input_shape=(16, 16, 3), include_top=False, pooling="avg")
    model = keras.Sequential([body, keras.layers.Dense(4, "softmax")])
    expected = model(some_images(3).astype(np.float32))
    np.testing.assert_allclose(Predictor(model).predict(some_images(3)), expected, atol=1e-5)
    flat = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(4, "softmax")])
    for sequence in (model, flat):
        sequence.save(tmp_path / "model.keras")
        assert load_model(str(tmp_path / "model.keras")).output_shape == (None, 4)


def test_a_sequence_that_was_loaded_has_each_layer_once(tmp_path):
    # Keras calls the first layers anew for each one that it adds, and it adds one by one what it loads.
    kinds = [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    ends = [keras.layers.Flatten(), keras.layers.Dense(3, "softmax")]
    model = keras.Sequential([keras.Input((16, 16, 3)), *kinds, *ends])
    model.layers[2].moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    model.save(tmp_path / "sequence.keras")
    loaded = load_model(str(tmp_path / "sequence.keras"))
    folded, images = fold_batch_norm(loaded), some_images(3).astype(np.float32)
    assert not [layer for layer in folded.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for same in (loaded, folded, make_plain(loaded)):
        np.testing.assert_allclose(same(images), model(images), atol=1e-5)
    nested = resnet.build_resnet(
        1, input_shape=(16, 16, 3), preprocessing=keras.Sequential([keras.layers.Rescaling(1 / 99)])
    )
    np.testing.assert_allclose(fold_batch_norm(nested)(images), nested(images), atol=1e-5)


def test_a_sequence_that_cannot_be_copied_answers_as_it_is():
    model = keras.Sequential([keras.Input((16, 16, 3))])
    for layer in (
        keras.layers.Lambda(lambda pixels: pixels / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(3, "softmax"),
    ):
        model.add(layer)
    np.testing.assert_allclose(
        Predictor(model).predict(some_images(3)), model(some_images(3).astype(np.float32)), atol=1e-5
    )


def test_what_is_no_classifier_is_refused(tmp_path):
    images = keras.Input((16, 16, 3))
    features = keras.layers.Flatten()(images)
    logits = keras.Model(images, keras.layers.Dense(3)(features))
    with pytest.raises(UsageError, match=r"must answer with probabilities 0\.\.1, received -?\d"):
        Predictor(logits).predict(some_images(3))
    for outputs in ([logits.output, logits.output], images):
        with pytest.raises(ValueError, match=r"expected a model whose output is \[batch, classes\]"):
            Predictor(keras.Model(images, outputs))
    keras.Model(images, keras.layers.Dense(1, "sigmoid")(features)).save(tmp_path / "one.keras")
    with pytest.raises(UsageError, match="two classes or more"):
        load_model(str(tmp_path / "one.keras"))
