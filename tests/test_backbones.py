"""Every backbone: preprocessing, size, head, gradient, saving, what speaks for a class."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from flowers import backbone_weights, backbones, heads, transfer_facts
from flowers.settings import FlowerParameters
from flowers.transfer import Transfer
from resnet_study.errors import UsageError
from resnet_study.files import write_json
from resnet_study.networks import registry
from resnet_study.networks.layers import PixelNormalization
from resnet_study.reports import grad_cam
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.training.step import is_seed

OWN = [name for name, spec in registry.MODELS.items() if spec.options.get("input_shape") is None]
IN_DEFAULT_SUITE = ("mobilenetv3small", "resnet9")


def test_every_classifier_of_keras_is_there():
    builders = {name for name, value in vars(keras.applications).items() if inspect.isfunction(value)}
    assert {backbone.application for backbone in backbones.APPLICATIONS.values()} == builders


def test_preprocessing_is_that_of_keras():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3)).astype(np.float32)
    for backbone in backbones.APPLICATIONS.values():
        if backbone.pixels == "efficientnet":
            continue  # see below
        module = inspect.getmodule(getattr(keras.applications, backbone.application))
        np.testing.assert_allclose(
            backbone.make_preprocessing()(images), module.preprocess_input(images.copy()), atol=1e-4
        )


def test_the_layer_that_keras_inserts_for_imagenet_is_in_the_preprocessing():
    images = np.random.default_rng(0).integers(0, 256, (1, 5, 5, 3)).astype(np.float32)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    within = keras.layers.Normalization(mean=mean, variance=np.square(deviation))
    expected = within(images / 255) / np.sqrt(deviation)  # Rescaling, Normalization, Rescaling of the builder
    received = within(backbones.find("efficientnetb0").make_preprocessing()(images) / 255)
    np.testing.assert_allclose(received, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in IN_DEFAULT_SUITE else pytest.mark.slow)
        for name in [*backbones.APPLICATIONS, *OWN]
    ],
)
def test_a_backbone_trains_a_head_is_saved_and_explained(name, tmp_path):
    backbone = backbones.find(name)
    size = backbone.smallest
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.float32)
    # Logits: deep networks with random weights are so sure that their probabilities have no gradient.
    options = {"head": backbone.head, "classifier_activation": None}
    model = heads.build_transfer(name, 3, input_shape=(size, size, 3), **options)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(images, training=True)[:, 0])
    gradients = tape.gradient(loss, model.trainable_variables)
    assert gradients and all(np.isfinite(gradient).all() for gradient in gradients)
    assert any(np.any(gradient) for gradient in gradients)
    model.save(tmp_path / "model.keras")
    answers = np.asarray(model(images))
    np.testing.assert_allclose(load_model(str(tmp_path / "model.keras"))(images), answers, rtol=1e-4, atol=1e-5)
    features, head = heads.split_model(model)
    np.testing.assert_allclose(head(features(images)), answers, rtol=1e-3, atol=1e-4)
    stages = heads.find_stages(heads.find_backbone(model))
    assert stages == sorted(stages) and len(stages) == len(heads.find_backbone(model).layers)
    if size >= 8:
        heat = grad_cam.explain(model, images, [0, 2])
        assert heat.shape == (2, size, size) and np.isfinite(heat).all()


def test_a_stage_begins_where_the_maps_become_smaller():
    layers = [keras.layers.Conv2D(2, 3, strides, padding="same") for strides in (1, 2, 2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers[:2], keras.layers.ReLU(), layers[2]])
    model = keras.Model(model.inputs, model.outputs)
    assert heads.find_stages(model) == [0, 0, 1, 1, 2]
    heads.unfreeze_stages(model, 1)
    assert [id(variable) for variable in model.trainable_variables] == [id(variable) for variable in layers[2].weights]


def test_shipped_weights_come_with_their_normalisation():
    model = heads.build_transfer("resnet20", 4, input_shape=(32, 32, 3), weights="cifar10", head="linear")
    shipped = load_model("cifar10", "resnet20")
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.float32)
    expected = keras.Model(shipped.input, shipped.layers[-1].input)(images)
    np.testing.assert_allclose(heads.split_model(model)[0](images), expected, atol=1e-4)


def test_weights_of_a_run_come_with_its_normalisation(tmp_path):
    normalization = PixelNormalization(10.0, 20.0, name="normalization")
    registry.find("resnet8").build(classes=5, preprocessing=normalization).save(tmp_path / "best.keras")
    found = backbones.find("resnet8").make_preprocessing(str(tmp_path / "best.keras"))
    assert (found.mean, found.scale) == (10.0, 20.0)


def test_size_and_weights_follow_from_the_network():
    given = FlowerParameters(data_dir="x", model="efficientnetb3")
    assert (given.image_size, given.weights, given.head_name) == (300, "imagenet", "pool")
    given = FlowerParameters(data_dir="x", model="resnet20")
    assert (given.image_size, given.weights, given.head_name) == (32, "cifar10", "linear")
    assert FlowerParameters(data_dir="x", model="plain20").weights == "none"
    # Keras' ResNet50 is no network of this library, whose shipped weights could be meant.
    assert [FlowerParameters(model=name).shipped_name for name in ("resnet50", "resnet20")] == ["", "resnet20"]
    assert (FlowerParameters().image_size, FlowerParameters().weights) == (224, "imagenet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "resnet21"}, "did you mean .*resnet20 .*resnet50, .*nasnetlarge"),
        ({"model": "resnet50v"}, "received 'resnet50v'; did you mean resnet50v2 or"),
        ({"model": "EfficientNet_B0"}, "did you mean efficientnetb0 or"),
        ({"model": "xception", "image_size": 70}, "--image_size must be at least 71 for --model=xception, received 70"),
        ({"model": "resnet20", "weights": "imagenet"}, "--weights=imagenet are not there for --model=resnet20"),
        ({"model": "resnet50", "weights": "cifar10"}, "--weights=cifar10 are not there for --model=resnet50"),
        ({"model": "plain20", "weights": "cifar100"}, "not there for --model=plain20, expected none, a file or a run"),
    ],
)
def test_what_does_not_fit_together_is_refused(settings, message):
    with pytest.raises(UsageError, match=message):
        FlowerParameters(data_dir="x", **settings)


def test_a_builder_refuses_weights_of_other_backbones():
    with pytest.raises(UsageError, match="--weights=cifar10 are not there for --model=resnet50, expected imagenet"):
        heads.build_transfer("resnet50", 10, input_shape=(64, 64, 3), weights="cifar10")


def test_the_default_rate_fits_the_backbone():
    def rate(**changes):
        return FlowerParameters(data_dir="folder", **changes).init_lr

    assert rate() == rate(model="resnet152v2") == 1e-5  # as the texts
    assert rate(model="resnet20") == 1e-2 and rate(model="mobilenetv2") == rate(model="resnet20", head="pool") == 1e-3
    assert rate(model="resnet20", base="trained") == 1e-4
    assert rate(model="resnet20", init_lr=0.5) == 0.5


def test_moving_statistics_of_random_weights_follow_within_some_hundred_steps(tmp_path):
    config = FlowerParameters(dataset="digits", model="mobilenetv3small", weights="none", base="trained")
    task = Transfer(config, RunFolder(tmp_path))
    task.build(0, "float32", tf.distribute.get_strategy())
    layers = [layer for layer in task.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {layer.momentum for layer in layers} == {0.9}


def test_a_frozen_backbone_drops_nothing_until_it_trains(tmp_path, monkeypatch):
    """Its features are the same whether they are cached or not, see `flowers.features`."""
    monkeypatch.setattr(
        backbones.Backbone,
        "build",
        lambda *_, **__: registry.find("resnet8").build(include_top=False, block_dropout=0.5, name="resnet8"),
    )

    def rates(stages, **changes):
        config = FlowerParameters(dataset="digits", model="resnet8", weights="none", **changes)
        task = Transfer(config, RunFolder(tmp_path))
        for stage in stages:
            task.build(stage, "float32", tf.distribute.get_strategy())
        return {layer.rate for layer in task.backbone.layers if isinstance(layer, keras.layers.Dropout)}

    assert rates([0], unfreeze_at_epoch=1) == {0.0}
    assert rates([0, 1], unfreeze_at_epoch=1) == rates([0], base="trained") == {0.5}


def test_loading_weights_leaves_the_seeds_of_dropout(tmp_path):
    def build():
        return registry.find("resnet8").build(include_top=False, block_dropout=0.1, name="resnet8")

    build().save(tmp_path / "best.keras")
    backbone = build()
    seeds = [variable.numpy() for variable in backbone.variables if is_seed(variable)]
    backbone_weights.load_backbone_weights(backbone, str(tmp_path / "best.keras"))
    received = [variable.numpy() for variable in backbone.variables if is_seed(variable)]
    assert seeds and all(map(np.array_equal, seeds, received))


def test_a_frozen_backbone_of_this_library_goes_on_and_gives_its_preprocessing(tmp_path):
    """In the model of a run it is a layer without trainable weights, as preprocessing is."""
    layer = PixelNormalization([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    heads.build_transfer("resnet8", 2, input_shape=(8, 8, 3), preprocessing=layer).save(tmp_path / "best.keras")
    found = backbones.find("resnet8").make_preprocessing(str(tmp_path / "best.keras"))
    assert found.mean == layer.mean and found.scale == layer.scale


def test_weights_come_out_of_models_with_preprocessing_or_a_head_of_their_own(tmp_path):
    norm = keras.layers.Normalization()
    norm.adapt(np.random.default_rng(0).random((4, 8, 8, 3)))
    inputs = keras.Input((8, 8, 3))
    network = registry.find("resnet8").build(include_top=False, pooling=None, input_tensor=norm(inputs))
    head = keras.layers.Dense(2, name="mine")(
        keras.layers.Flatten()(keras.layers.Conv2D(4, 2, name="own")(network.output))
    )
    keras.Model(inputs, head, name="resnet8").save(tmp_path / "flat.keras")
    backbone = registry.find("resnet8").build(include_top=False, pooling=None, input_shape=(8, 8, 3))
    backbone_weights.load_backbone_weights(backbone, str(tmp_path / "flat.keras"))
    np.testing.assert_array_equal(backbone.get_layer("stem_conv").kernel, network.get_layer("stem_conv").kernel)


def test_images_that_have_changed_are_not_gone_on_with(tmp_path):
    task = Transfer(FlowerParameters(dataset="digits", model="resnet20", base="trained"), RunFolder(tmp_path))
    facts = transfer_facts.describe_data(task)
    write_json(task.run.data, facts)
    task.begin(None, resumed=True)
    write_json(task.run.data, facts | {"fingerprint": "of others"})
    with pytest.raises(UsageError, match="are others; give the same --data_dir"):
        task.begin(None, resumed=True)


def test_constants_of_a_backbone_come_with_its_weights(monkeypatch):
    def build(include_top, weights, input_shape):
        images = keras.Input(input_shape)
        norm = keras.layers.Normalization(name="normalization")
        model = keras.Model(images, norm(images), name="efficientnetb0")
        if weights:
            model.set_weights([np.full(weight.shape, 4.0) for weight in model.weights])
        return model

    monkeypatch.setattr(keras.applications, "EfficientNetB0", build)
    backbone = backbones.find("efficientnetb0").build((8, 8, 3), "imagenet", True)
    np.testing.assert_allclose(backbone(np.full((1, 8, 8, 3), 8.0)), 2.0)


def test_filters_that_are_made_from_images_are_so_in_a_transfer_from_random_weights(tmp_path):
    """They never train, and would stay random."""

    def whiten(**changes):
        config = FlowerParameters(dataset="digits", model="resnet9", **changes)
        task = Transfer(config, RunFolder(tmp_path))
        task.build(0, "float32", tf.distribute.get_strategy())
        images, _ = task.training.load(np.arange(len(task.training)))
        layer = task.backbone.get_layer("stem_whitening")
        found = tf.nn.conv2d(task._preprocessing(images), layer.kernel.value, 1, "VALID")
        return np.cov(np.reshape(found, [-1, found.shape[-1]])[:, : found.shape[-1] // 2].T).diagonal()

    variances = whiten(weights="none", base="trained")
    assert variances.max() < 1.01 and (variances > 0.5).sum() >= 3  # of directions in which grey digits differ
    np.testing.assert_array_equal(whiten(weights="none"), variances)
