import keras
import numpy as np
import pytest

from resnet_study.networks.fold_batch_norm import fold_batch_norm
from resnet_study.networks.inception_resnet import build_inception_resnet_v1, build_inception_resnet_v1_small
from resnet_study.networks.layers import FusedBatchNormalization
from resnet_study.studies.diagrams import draw_study

# architecture: Szegedy et al. 2016 with ten classes, worked out by hand: output size and channels after each part
SIZES = {
    299: (149, 147, 147, 73, 73, 71, 35, 17, 8),
    160: (79, 77, 77, 38, 38, 36, 17, 8, 3),
    75: (37, 35, 35, 17, 17, 15, 7, 3, 1),
}
PARTS = {
    "stem_conv1": 32, "stem_conv2": 32, "stem_conv3": 64, "stem_pool": 64, "stem_conv4": 80, "stem_conv5": 192,
    "module_a5_relu": 256, "module_b10_relu": 896, "module_c5_relu": 1792,
}  # fmt: skip


@pytest.mark.parametrize(
    ("size", "classes", "scale", "total"),
    [
        pytest.param(299, 1000, True, 22_783_368, marks=pytest.mark.slow),
        pytest.param(299, 1000, False, 22_769_848, marks=pytest.mark.slow),
        pytest.param(160, 10, True, 21_008_298, marks=pytest.mark.slow),
        (75, 10, False, 20_994_778),
    ],
)
def test_size_of_the_published_network(size, classes, scale, total):
    model = build_inception_resnet_v1(input_shape=(size, size, 3), classes=classes, scale_batch_norm=scale)
    assert model.count_params() == total
    assert sum(int(np.prod(variable.shape)) for variable in model.non_trainable_weights) == 27_040
    for (name, channels), expected in zip(PARTS.items(), SIZES[size], strict=True):
        assert model.get_layer(name).output.shape == (None, expected, expected, channels), name
    rates = {layer.name: layer.scale for layer in model.layers if isinstance(layer, keras.layers.Rescaling)}
    assert rates == {
        f"module_{letter}{index}_scale": rate
        for letter, count, rate in (("a", 5, 0.17), ("b", 10, 0.1), ("c", 5, 0.2))
        for index in range(1, count + 1)
    }
    assert model.get_layer("dropout").rate == 0.2


def test_branches_hold_the_convolutions_of_the_figures():
    """Liang 2020, figure 2 and 3: kernel sizes and filters of each branch, in order."""
    model = build_inception_resnet_v1(input_shape=(75, 75, 3), classes=2, modules=(1, 1, 1))

    def branches(module):
        found = {}
        for layer in model.layers:
            if isinstance(layer, keras.layers.Conv2D) and layer.name.startswith(f"{module}_"):
                height, width = layer.kernel_size
                found.setdefault(layer.name.split("_")[2], []).append(f"{height}x{width} {layer.filters}")
        return found

    assert branches("module_a1") == {
        "branch1": ["1x1 32"], "branch2": ["1x1 32", "3x3 32"], "branch3": ["1x1 32", "3x3 32", "3x3 32"],
        "up": ["1x1 256"],
    }  # fmt: skip
    assert branches("module_b1") == {
        "branch1": ["1x1 128"],
        "branch2": ["1x1 128", "1x7 128", "7x1 128"],
        "up": ["1x1 896"],
    }
    assert branches("module_c1") == {
        "branch1": ["1x1 192"],
        "branch2": ["1x1 192", "1x3 192", "3x1 192"],
        "up": ["1x1 1792"],
    }
    assert branches("reduction_a") == {"branch1": ["3x3 384"], "branch2": ["1x1 192", "3x3 192", "3x3 256"]}
    assert branches("reduction_b") == {
        "branch1": ["1x1 256", "3x3 384"], "branch2": ["1x1 256", "3x3 256"],
        "branch3": ["1x1 256", "3x3 256", "3x3 256"],
    }  # fmt: skip


def test_a_module_without_weights_passes_its_input_on():
    """ReLU(x + scale * up): with the last convolution at zero, a module gives the maps it was given."""
    model = build_inception_resnet_v1_small()
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    given, passed = (model.get_layer(name) for name in ("module_b1_relu", "module_b2_relu"))
    up = model.get_layer("module_b2_up")
    watch = keras.Model(model.input, [given.output, passed.output])
    before, after = watch(images)
    assert not np.allclose(before, after)
    kernel, bias = up.get_weights()
    up.set_weights([0 * kernel, bias + 0.5])
    before, after = watch(images)
    np.testing.assert_allclose(after, before + 0.1 * 0.5, rtol=1e-5)
    assert np.any(before)


def test_the_small_network():
    model = build_inception_resnet_v1_small()
    shapes = [
        model.get_layer(name).output.shape[1:] for name in ("stem_conv6", "reduction_a_concat", "reduction_b_concat")
    ]
    assert shapes == [(16, 16, 64), (7, 7, 224), (3, 3, 448)]
    assert model.output_shape == (None, 10)
    assert build_inception_resnet_v1_small(include_top=False, input_shape=(28, 28, 1)).output_shape == (None, 448)


@pytest.mark.parametrize("is_small", [True, False])
def test_a_mixed_network_computes_in_float32_at_its_ends_only(is_small):
    options = {"reduced_stem": is_small, "input_shape": (75, 75, 3), "modules": (1, 1, 1), "width": 0.1}
    model = build_inception_resnet_v1(**options, dtype="mixed_bfloat16")
    exact = [layer.name for layer in model.layers if layer.compute_dtype == "float32"]
    assert exact == ["image", "average_pool", "dropout", "predictions"]


def test_weights_folding_and_the_beta_only_norm(tmp_path):
    keras.utils.set_random_seed(1)
    small = {"scale_batch_norm": False, "modules": (1, 1, 1)}
    model = build_inception_resnet_v1_small(**small)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, FusedBatchNormalization):
            count = layer.beta.shape[0]
            layer.set_weights([rng.normal(0, 0.3, count), rng.normal(0, 0.3, count), rng.uniform(0.5, 2, count)])
    images = rng.normal(size=(4, 32, 32, 3)).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    folded = fold_batch_norm(model)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    np.testing.assert_allclose(np.asarray(folded(images, training=False)), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = build_inception_resnet_v1_small(weights=tmp_path / "model.keras", **small)
    np.testing.assert_array_equal(np.asarray(again(images, training=False)), expected)
    with pytest.raises(ValueError, match="layer stem_conv1_bn expects"):
        build_inception_resnet_v1_small(weights=tmp_path / "model.keras", modules=(1, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (74, 299, 3)}, r"height >= 75.*received \(74, 299, 3\); use reduced_stem"),
        ({"input_shape": (12, 32, 3), "reduced_stem": True}, r"height >= 13.*received \(12, 32, 3\)"),
        ({"classes": 0}, "classes must be an int >= 1"),
        ({"modules": (5, 10)}, "modules must be three ints"),
        ({"width": 0}, "width must be above 0"),
        ({"dropout": 1.0}, "dropout in 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_inception_resnet_v1(**arguments)


def test_the_modules_are_drawn_from_the_model(tmp_path):
    """Figures 2 and 3 of Liang 2020: the study of diagrams has a figure of each module."""
    folder = draw_study({"runs_dir": str(tmp_path)}, ["inception_resnet_v1_small"])
    drawn = {path.stem for path in folder.glob("block-*.png")}
    assert drawn == {f"block-{name}" for name in ("module_a1", "module_b1", "module_c1", "reduction_a", "reduction_b")}
