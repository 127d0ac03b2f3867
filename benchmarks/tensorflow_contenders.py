"""The contenders that compute with TensorFlow, stock Keras and this library, and the machine itself."""

import os
import tempfile
import time
from pathlib import Path

from measuring import (
    BATCH,
    CONTENDERS,
    MATRIX_SIZE,
    PIPELINE_BATCHES,
    all_steps,
    blocks_of,
    check_parameters,
    draw_images,
    rate,
    scale_images,
    time_inference,
    training_result,
)

import cifar10_input
from hyper_parameters import from_preset
from resnet_study import devices
from resnet_study.environment import describe_environment
from resnet_study.networks import registry
from resnet_study.run_folder import RunFolder


def measure_stock(job: dict) -> dict:
    """Keras as users write it: `fit` and `predict` with stock layers in float32."""
    import keras  # not by `devices.import_tensorflow`, which turns oneDNN on

    images, labels = draw_images(job)
    images = scale_images(images)
    model = build_stock(blocks_of(job["model"]))
    check_parameters(model.trainable_variables, job)
    facts = {"number_format": "float32", "software": _software()}
    model.compile(
        keras.optimizers.SGD(0.04, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=CONTENDERS[job["contender"]].compiled or "auto",  # auto = not on a processor
    )
    if job["part"] == "inference":
        return facts | time_inference(lambda part, size: model.predict(part, batch_size=size, verbose=0), images)
    timer = _make_timer()
    model.fit(images, labels, batch_size=BATCH, verbose=0, callbacks=[timer])
    return facts | training_result(timer.ends, job)


def measure_ours(job: dict) -> dict:
    """This library: its training loop with normalisation and augmentation, and its predictor."""
    if CONTENDERS[job["contender"]].one_core:  # before TensorFlow looks at the cores
        if not hasattr(os, "sched_setaffinity"):
            return {"missing": "this operating system does not let a process choose its cores"}
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    devices.import_tensorflow()
    from cifar10_train import Train
    from resnet_study.predictor import Predictor

    images, labels = draw_images(job)
    config = _our_config(job)
    if job["part"] == "inference":
        devices.share_batches()  # as the command line does
        normalization = cifar10_input.make_normalization(config.normalization, images)
        model = registry.find(job["model"]).build(preprocessing=normalization)
        result = time_inference(Predictor(model, config.precision).predict, images)
        policy = devices.choose_policy(config.precision, config.strategy)
    else:
        everything = cifar10_input.Split(images, labels)
        data = cifar10_input.ImageData(everything, everything.take(range(10)), tuple("0123456789"), "drawn")
        timer = _make_timer()
        with tempfile.TemporaryDirectory() as folder:
            # As a user's training begins: Train sets the threads of TensorFlow, so nothing may be computed before.
            training = Train(config, RunFolder(Path(folder) / "run"), data)
            check_parameters(training.model.trainable_variables, job)
            training.train(callbacks=[timer])
        policy = training.machine.policy
        result = training_result(timer.ends, job)
    return {"number_format": policy.removeprefix("mixed_"), "software": _software()} | result


def measure_machine() -> dict:
    """Measures what bounds the contenders.

    Returns:
        float32 and bfloat16 (GFLOP/s of the best of five products of square matrices), input_rate (images/s of the library's
        augmented batches while nothing is trained), import_seconds (of `import resnet` after `import keras`), build_seconds (of
        ResNet-110), processor, cores, commit.
    """
    devices.import_tensorflow()
    import keras  # noqa: F401 - so that its time is not in that of resnet
    import tensorflow as tf

    start = time.perf_counter()
    import resnet

    imported = time.perf_counter()
    resnet.build_resnet110()
    built = time.perf_counter()

    environment = describe_environment("")
    result = {name: environment[name] for name in ("processor", "cores", "commit")}
    result |= {"import_seconds": imported - start, "build_seconds": built - imported}
    for number_format in ("float32", "bfloat16"):
        matrix = tf.cast(tf.random.normal((MATRIX_SIZE, MATRIX_SIZE)), number_format)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            tf.matmul(matrix, matrix)[0, 0].numpy()
            seconds.append(time.perf_counter() - start)
        result[number_format] = 2 * MATRIX_SIZE**3 / min(seconds) / 1e9

    job = {"contender": "ours", "model": "resnet20", "steps": PIPELINE_BATCHES}
    config = _our_config(job)
    split = cifar10_input.Split(*draw_images(job))
    normalization = cifar10_input.make_normalization(config.normalization, split.images)
    ends = []
    for _ in cifar10_input.training_batches(split, normalization, config):
        ends.append(time.perf_counter())
    return result | {"input_rate": rate(ends, job)}


def build_stock(blocks: int):
    """The v1 network of depth 6*blocks+2 in stock Keras layers, logits out; its shortcut is a strided slice and zero channels."""
    import keras
    from keras import layers

    def convolve(x, filters, stride=1):
        x = layers.Conv2D(
            filters, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal", dtype="float32"
        )(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32")(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(convolve(inputs, 16))
    for filters in (16, 32, 64):
        for _ in range(blocks):
            missing = filters - x.shape[-1]
            residual = layers.ReLU()(convolve(x, filters, 2 if missing else 1))
            residual = convolve(residual, filters)
            if missing:
                x = keras.ops.pad(x[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (missing // 2, missing // 2)))
            x = layers.ReLU()(layers.Add()([x, residual]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _our_config(job):
    """The default recipe, with one report before and one after the timed steps, and next to nothing to validate."""
    steps = all_steps(job)
    contender = CONTENDERS[job["contender"]]
    return from_preset(
        "fast",
        model=job["model"],
        train_batch_size=BATCH,
        train_steps=steps,
        report_freq=steps,
        validation_fraction=0.001,
        tensorboard=False,
        precision=contender.number_format,
    )


def _make_timer():
    """A Keras callback that notes when each training batch ended; `fit` and this library's loop both call it."""
    import keras

    class Timer(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.ends = []

        def on_train_batch_end(self, batch, logs=None):
            self.ends.append(time.perf_counter())

    return Timer()


def _software():
    import keras
    import tensorflow

    return f"TensorFlow {tensorflow.__version__}, Keras {keras.__version__}"
