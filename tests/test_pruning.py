"""A trained network made smaller: the right channels stay, the run resumes and everything opens it; weights that are 0 stay 0."""

import dataclasses
import functools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from cifar10_input import Split
from cifar10_main import main
from cifar10_test import evaluate
from cifar10_train import train
from hyper_parameters import HyperParameters, from_preset
from resnet import build_resnet, build_resnet9
from resnet_study.checkpoints import read_checkpoint
from resnet_study.errors import UsageError
from resnet_study.networks import pruning
from resnet_study.networks.layers import PixelNormalization
from resnet_study.networks.multiply_adds import multiply_adds
from resnet_study.networks.registry import find
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.studies.prune import plan
from resnet_study.training.sparsity import MagnitudePruning

RNG = np.random.default_rng(0)
IMAGES = Split(RNG.normal(size=(8, 16, 16, 3)).astype(np.float32), RNG.integers(0, 10, 8).astype(np.int32))


@pytest.mark.parametrize(
    ("form", "count"), [("v1", 3), ("preact", 3), ("plain", 3), ("v2", 3), ("bottleneck_v2", 6), ("resnet9", 3)]
)
def test_channels_that_do_nothing_go_and_nothing_changes(form, count):
    def build(**options):
        network = build_resnet9 if form == "resnet9" else functools.partial(build_resnet, 1, form)
        return network(input_shape=(16, 16, 3), **options)

    model = build()
    inner = pruning.find_inner(model)
    assert len(inner) == count
    place = max(inner, key=lambda one: one.width)
    kernel = place.after.kernel.numpy()
    idle = RNG.permutation(place.width)[: place.width // 2]
    kernel[:, :, idle] = 0
    place.after.kernel.assign(kernel)
    scores = pruning.score_channels(model, "taylor", IMAGES, 0)
    assert np.all(scores[inner.index(place)][idle] == 0)
    widths = [place.width // 2 if one is place else one.width for one in inner]
    smaller = pruning.keep_channels(model, build(widths=widths), scores)
    assert multiply_adds(smaller) < multiply_adds(model)
    np.testing.assert_allclose(smaller(IMAGES.images), model(IMAGES.images), atol=1e-4)


def test_blocks_without_a_shortcut_stay_and_a_network_may_have_another_name():
    plain = build_resnet(2, "plain", input_shape=(16, 16, 3))
    assert all(pruning.choose_widths(plain, pruning.score_channels(plain, "l1", IMAGES, 0), 0.7))
    named = [build_resnet9(input_shape=(16, 16, 3), name=name) for name in ("resnet9", "mine")]
    scores = pruning.score_channels(named[0], "l1", IMAGES, 0)
    smallest = [pruning.choose_widths(model, scores, 0.51) for model in named]
    assert smallest[0] == smallest[1] and 0 in smallest[0]


def test_widths_are_multiples_of_16_within_the_budget():
    model = find("resnet20").build(classes=10)
    scores = pruning.score_channels(model, "l1", IMAGES, 0)
    for share in (0.9, 0.6):
        widths = pruning.choose_widths(model, scores, share)
        assert not any(width % 16 for width in widths) and all(widths[::3])
        smaller = find("resnet20").build(classes=10, widths=widths)
        assert multiply_adds(smaller) <= share * multiply_adds(model) + 1
    with pytest.raises(UsageError, match="at least"):
        pruning.choose_widths(model, scores, 0.01)


def test_channels_that_are_worth_least_go_first():
    model = build_resnet(2, "v1", input_shape=(16, 16, 3))
    scores = [np.ones(place.width) for place in pruning.find_inner(model)]
    scores[-1] = np.float64([100] * 24 + [0] * 16 + [100] * 24)
    whole = [len(score) for score in scores]
    assert pruning.choose_widths(model, scores, 0.99) == [*whole[:-1], 48]
    fewer = pruning.choose_widths(model, scores, 0.7)
    assert fewer[-1] == 48 and sum(fewer) < sum(whole) - 16


def test_channels_are_scored_by_their_filters_or_by_their_scale():
    model = build_resnet(1, input_shape=(16, 16, 3))
    for place in (inner := pruning.find_inner(model)):
        place.norm.gamma.assign(RNG.normal(size=place.width))
    by_filter, by_scale = (pruning.score_channels(model, name, IMAGES, 0) for name in ("l1", "norm"))
    for place, filters, scales in zip(inner, by_filter, by_scale, strict=True):
        np.testing.assert_allclose(filters, abs(place.before.kernel.numpy()).sum(axis=(0, 1, 2)), rtol=1e-6)
        np.testing.assert_array_equal(scales, abs(place.norm.gamma.numpy()))
    with pytest.raises(UsageError, match="--prune_by=norm needs batch norm with a scale, which resnet9 has not"):
        pruning.score_channels(build_resnet9(input_shape=(16, 16, 3)), "norm", IMAGES, 0)


TINY_RUN = {"train_steps": 6, "report_freq": 3, "synthetic_images": 200, "tensorboard": False}


@pytest.mark.slow
def test_a_pruned_run_resumes_and_is_opened(tmp_path, capsys):
    whole = from_preset("smoke", runs_dir=str(tmp_path), version="whole", **TINY_RUN)
    train(whole)
    given = {"train_steps": 4}
    config = plan(dataclasses.replace(whole, **given), given, 0.8, resume=False)
    run = RunFolder(tmp_path / "whole-macs0.8")
    assert config.run_name == run.path.name and config.init_lr == whole.init_lr / 2
    train(config)
    pruned = load_model(str(run))
    assert multiply_adds(pruned) <= 0.8 * multiply_adds(load_model(str(tmp_path / "whole"))) + 1
    assert load_model(str(run.latest_checkpoint())).count_params() == pruned.count_params()
    capsys.readouterr()
    flags = [f"--runs_dir={tmp_path}", "--version=whole"]
    assert plan(whole, {}, 0.8, resume=True) == dataclasses.replace(config, runs_dir=whole.runs_dir)
    assert main(["--mode=prune", *flags, "--macs=0.8"]) == 2 and "--resume" in capsys.readouterr().err
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    other = {"runs_dir": str(tmp_path), "version": "whole-macs0.8"}
    for source in (tmp_path / "copy", tmp_path / "whole" / "best.keras"):  # the same model
        plan(dataclasses.replace(whole, **other, test_ckpt_path=str(source)), {}, 0.8, resume=True)
    shutil.copy(tmp_path / "copy" / "final.keras", tmp_path / "copy" / "best.keras")
    (tmp_path / "copy" / "best.keras").write_bytes((tmp_path / "copy" / "best.keras").read_bytes() + b"another")
    with pytest.raises(UsageError, match="which is another model; give another --version"):
        plan(dataclasses.replace(whole, **other, test_ckpt_path=str(tmp_path / "copy")), {}, 0.8, resume=True)
    with pytest.raises(UsageError, match="whole is no run that was pruned"):
        plan(
            dataclasses.replace(whole, **other | {"version": "whole"}, test_ckpt_path=str(tmp_path / "copy")),
            {},
            0.8,
            resume=True,
        )
    longer = ["--macs=0.8", "--resume", "--train_steps=6"]
    assert main(["--mode=prune", *flags, *longer]) == 2 and "--extend=4" in capsys.readouterr().err
    assert main(["--mode=prune", *flags]) == 2 and "needs --macs" in capsys.readouterr().err
    assert main(["--mode=prune", *flags, "--macs=0.01"]) == 2 and "at least" in capsys.readouterr().err


def test_a_pruned_run_is_named_after_its_source_or_by_the_flag_that_names_no_source(trained_run, tmp_path):
    source = {"runs_dir": str(tmp_path), "test_ckpt_path": str(trained_run.path), "sparsity": 0.8}
    for version, name in (("mine", "mine"), ("", f"{trained_run.path.name}-synthetic-zeros0.8")):
        assert plan(from_preset("smoke", version=version, **source), {}, 1, resume=False).run_name == name
    shutil.copytree(trained_run.path, tmp_path / "test-a")
    whole = from_preset("smoke", runs_dir=str(tmp_path), version="test-a", sparsity=0.8)
    assert plan(whole, {}, 1, resume=False).run_name == "test-a-zeros0.8"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(from_preset("smoke").to_json())
    with pytest.raises(UsageError, match="mine already holds a run"):
        plan(from_preset("smoke", version="mine", **source), {}, 1, resume=False)
    with pytest.raises(UsageError, match="received neither"):
        plan(from_preset("smoke"), {}, 1, resume=False)
    # The decays of a step schedule come when the same share of the steps is done.
    whole = RunFolder(trained_run.path).read_config(type(from_preset("smoke"))).train_steps
    for given, steps in (({}, 15), ({"train_steps": 10}, 10)):
        recipe = from_preset(
            "smoke", **source, **{"train_steps": 60} | given, decay_step0=4 * whole, decay_step1=6 * whole
        )
        assert plan(recipe, given, 1, resume=False).decay_step0 == 4 * steps
    with pytest.raises(UsageError, match="chooses the widths itself"):
        plan(from_preset("smoke", **source), {"widths": "16,16"}, 0.5, resume=False)


@pytest.mark.slow
def test_a_network_that_has_lost_a_block_is_pruned_again(tmp_path):
    whole = from_preset("smoke", runs_dir=str(tmp_path), version="whole", model="resnet14", **TINY_RUN)
    train(dataclasses.replace(whole, widths="16,0,32,32,64,64"))
    source = RunFolder(tmp_path / "whole").read_config(type(whole))
    config = plan(dataclasses.replace(source, train_steps=4), {"train_steps": 4}, 0.7, resume=False)
    widths = [int(width) for width in config.widths.split(",")]
    assert len(widths) == 6 and widths[1] == 0 and sum(widths) < 208
    train(config)


def test_labels_of_several_classes_are_scored_as_such():
    keras.utils.set_random_seed(0)
    normalization = PixelNormalization(127.5, 127.5)  # so that no answer is so sure that its gradient is zero
    model = find("resnet8").build(
        classes=3, classifier_activation="sigmoid", input_shape=(8, 8, 3), preprocessing=normalization
    )
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), np.uint8)
    one, other = np.tile([1, 0, 0], (20, 1)), np.tile([1, 0, 1], (20, 1))
    scores = [pruning.score_channels(model, "taylor", Split(images, np.int32(labels)), 0) for labels in (one, other)]
    assert all(np.isfinite(score).all() for score in scores[0])
    assert any(not np.allclose(*pair, atol=0) for pair in zip(*scores, strict=True))  # the third label counts


def test_the_smallest_weights_become_zero_and_the_first_layer_stays():
    rng = np.random.default_rng(0)
    layers = [keras.layers.Conv2D(4, 3, use_bias=False) for _ in range(3)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    before = [scale * rng.normal(size=layer.kernel.shape) for scale, layer in zip((0.1, 1, 3), layers, strict=True)]
    model.set_weights(before)
    averages = [tf.Variable(tf.ones(kernel.shape)) for kernel in model.weights]
    sparse = MagnitudePruning(model, averages, 0.5, train_steps=4)
    sparse.prune(sparse.find_kept(3), tf.constant(3))  # the last time: three quarters of the training
    limit = np.median(np.concatenate([abs(kernel).ravel() for kernel in before[1:]]))
    for kernel, weight, average in zip(before, model.get_weights(), averages, strict=True):
        kept = abs(kernel) > limit if kernel is not before[0] else np.ones_like(kernel, bool)
        np.testing.assert_allclose(weight, kernel * kept, rtol=1e-6)
        np.testing.assert_array_equal(average, kept)


def test_zeros_stay_zero_in_weights_and_averages(tmp_path):
    train(
        from_preset("smoke", runs_dir=str(tmp_path), version="sparse", sparsity=0.8, weight_averaging=0.9, **TINY_RUN)
    )
    run = RunFolder(tmp_path / "sparse")
    arrays, _ = read_checkpoint(run.latest_checkpoint())
    stored = load_model(str(run)).get_weights()
    weights = [array for name, array in arrays.items() if name.startswith("net/")]
    averages = [array for name, array in arrays.items() if name.startswith("average/")]
    for kernels in (weights, averages, stored):
        kernels = [kernel for kernel in kernels if kernel.ndim == 4][1:]
        zeros = sum(np.sum(kernel == 0) for kernel in kernels) / sum(kernel.size for kernel in kernels)
        assert zeros == pytest.approx(0.8, abs=0.001)
    # Tested are the last weights, whichever report had the lowest error before the zeros came.
    history = run.read_history()
    history.loc[0, "validation_error"] = history.loc[1, "validation_error"] = 0.0
    run.error_csv.write_text(history.to_csv(index=False))
    result, _ = evaluate(run.read_config(HyperParameters))
    assert result["best_step"] == 6 and result["validation_error"] == history["validation_error"].iloc[-1] > 0


def test_widths_that_fit_no_network_are_refused(tmp_path, capsys):
    for widths in ("16,16", "0,16,16", "a"):
        flags = ["--preset=smoke", f"--runs_dir={tmp_path}", f"--widths={widths}"]
        assert main(["--mode=train", *flags]) == 2 and "idths must be" in capsys.readouterr().err
    assert main(["--mode=train", "--preset=smoke", f"--runs_dir={tmp_path}", "--model=lenet5", "--widths=16"]) == 2
