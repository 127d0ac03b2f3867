"""A trained network teaches another: the loss by hand, a run that goes on, and teachers that do not fit."""

import functools
import shutil

import conftest
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import assert_resumes_exactly, last_arrays

from cifar10_train import train
from flowers.settings import FlowerParameters
from hyper_parameters import from_preset
from resnet_study.errors import UsageError
from resnet_study.networks import registry
from resnet_study.networks.layers import PixelNormalization
from resnet_study.run_folder import RunFolder
from resnet_study.saved_models import load_model
from resnet_study.training.distillation import Teacher
from resnet_study.training.work import training_pflop

tiny = functools.partial(conftest.tiny, train_steps=4, report_freq=2, synthetic_images=80, train_batch_size=8)


@pytest.fixture
def teacher_file(tmp_path):
    """A network that tells two classes of images of 4x4 pixels apart by the mean of their pixels."""
    inputs = keras.Input((4, 4, 3))
    x = PixelNormalization(100.0, 50.0)(inputs)
    x = keras.layers.Dense(2, "softmax")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(inputs, x).save(tmp_path / "teacher.keras")
    return tmp_path / "teacher.keras"


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_loss_is_that_of_hinton(teacher_file, temperature):
    normalization = PixelNormalization([120.0, 110.0, 100.0], [60.0, 61.0, 62.0])
    teacher = Teacher(str(teacher_file), normalization, ["a", "b"], (4, 4, 3), "float32")
    rng = np.random.default_rng(0)
    pixels, logits = rng.integers(0, 256, (5, 4, 4, 3)), rng.normal(size=(5, 2)).astype(np.float32)
    losses = np.arange(5, dtype=np.float32)
    found = teacher.teach(normalization(pixels), tf.constant(logits), losses, temperature, 0.25)

    def soften(probabilities):
        powers = probabilities ** (1 / temperature)
        return powers / powers.sum(axis=1, keepdims=True)

    p = soften(teacher.model.predict(pixels, verbose=0))
    q = soften(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    expected = 0.75 * losses + 0.25 * temperature**2 * (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_changes_the_weights(tmp_path):
    short = functools.partial(tiny, tmp_path, model="lenet5", init_lr=0.01, train_steps=1, report_freq=1)
    teacher = train(short(version="teacher", seed=1))
    configs = short(version="alone"), short(version="taught", teacher=str(teacher.path), teacher_share=0.9)
    runs = [train(config) for config in configs]
    alone, taught = map(last_arrays, runs)
    assert alone.keys() == taught.keys()
    assert any(not np.array_equal(array, taught[name]) for name, array in alone.items())
    model = load_model(str(teacher.best))
    works = [training_pflop(config, model, 1, run) for config, run in zip(configs, runs, strict=True)]
    # Three passes of the network, and one of a teacher of the same size.
    assert works[1] == pytest.approx(4 / 3 * works[0])


@pytest.mark.slow
@pytest.mark.parametrize("towers", [1, 2])
def test_a_taught_run_goes_on_without_its_teachers_file(tmp_path, towers):
    teacher = train(tiny(tmp_path / "teacher", model="plain8")).path
    options = {"teacher": str(teacher), "teacher_share": 0.9, "towers": towers, "seed": 1}
    alone = train(tiny(tmp_path, version="alone", towers=towers, seed=1))

    def taught(version, resume=False, **how):
        if resume:
            (teacher / "best.keras").unlink()
        return train(tiny(tmp_path, version=version, **options), resume=resume, **how)

    whole, _ = assert_resumes_exactly(taught, 3)
    assert any(not np.array_equal(array, last_arrays(alone)[name]) for name, array in last_arrays(whole).items())


def test_teachers_that_do_not_fit_are_one_line(tmp_path, teacher_file):
    with pytest.raises(UsageError, match="of the shapes"):
        train(tiny(tmp_path, teacher=str(teacher_file)))
    with pytest.raises(UsageError, match=r"must know the classes.*airplane"):
        train(tiny(tmp_path, dataset="digits", train_batch_size=8, teacher="resnet9"), overwrite=True)
    with pytest.raises(UsageError, match="needs the pixels back"):
        train(tiny(tmp_path, teacher=str(teacher_file), normalization="image_standard"), overwrite=True)
    with pytest.raises(UsageError, match=r"^--teacher: 'cifar100', the shipped weights, cannot be loaded") as refused:
        Teacher("resnet9", PixelNormalization(0.0, 1.0), 100 * ["a"], (32, 32, 3), "float32")
    assert "or the name" not in str(refused.value)
    with pytest.raises(UsageError, match=r"^--teacher: expected .*nonsense.* or the name of a network"):
        train(tiny(tmp_path, teacher="nonsense"), overwrite=True)
    names, raw = ["a", "b"], PixelNormalization(0.0, 1.0)
    for activation, answers in ((None, "with a sum of"), ("sigmoid", "end it in a softmax")):
        inputs = keras.Input((4, 4, 3))
        relu = keras.layers.ReLU()
        pooled = keras.layers.GlobalAveragePooling2D()(relu(relu(inputs)))
        keras.Model(inputs, keras.layers.Dense(2, activation)(pooled)).save(tmp_path / "other.keras")
        with pytest.raises(UsageError, match=f"must give the probabilities of one label.*{answers}"):
            Teacher(str(tmp_path / "other.keras"), raw, names, (4, 4, 3), "float32").check_answers()
    with pytest.raises(UsageError, match="networks with one head"):
        from_preset("smoke", dataset="cifar10", heads="class,kind", teacher="resnet9")


def test_a_command_names_the_sources_of_a_run_and_not_their_places():
    assert "--teacher=runs/macs0.5" in from_preset("smoke", teacher="/some/where/macs0.5").command
    for path in ("best.keras", "checkpoints/step-00000010.npz"):
        config = from_preset("smoke", is_use_ckpt=True, ckpt_path=f"/some/where/mine/{path}")
        assert f"--ckpt_path=runs/mine/{path}" in config.command
    assert "--weights=runs/a/b.h5" in FlowerParameters(weights="/some/a/b.h5").command
    assert "--teacher=resnet9" in from_preset("smoke", teacher="resnet9").command


@pytest.mark.parametrize("changes", [{"teacher": "FILE"}, {"is_use_ckpt": True, "ckpt_path": "FILE"}])
def test_a_start_file_that_cannot_be_read_costs_no_run(trained_run, tmp_path, changes):
    run = RunFolder(shutil.copytree(trained_run.path, tmp_path / "x"))
    kept = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (tmp_path / "damaged.keras").write_bytes(b"damaged")
    changes = {name: str(tmp_path / "damaged.keras") if value == "FILE" else value for name, value in changes.items()}
    with pytest.raises(UsageError, match="damaged"):
        train(tiny(tmp_path, **changes), overwrite=True)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == kept
    with pytest.raises(UsageError, match="damaged"):
        train(tiny(tmp_path, version="new", **changes))
    assert not (tmp_path / "new" / "config.json").exists()


def test_a_teacher_of_other_classes_is_known_by_its_file(tmp_path):
    shutil.copy(registry.shipped_file("resnet20", "cifar10"), tmp_path / "moved.keras")
    for source in ("cifar10", str(tmp_path / "moved.keras")):
        with pytest.raises(UsageError, match=r"must know the classes.*airplane"):
            train(tiny(tmp_path, dataset="digits", train_batch_size=8, teacher=source), overwrite=True)
