"""On what and how it is computed: devices, number format, threads, determinism. Several machines are in `workers`."""

import contextlib
import functools
import itertools
import os
import shutil
import sys
from pathlib import Path

from resnet_study import workers
from resnet_study.environment import count_cores, has_onednn, processor_flags, used_gpus
from resnet_study.errors import UsageError, say_once
from resnet_study.strings import shorten

# The fewest images of one tower, where the number of towers is chosen: batch normalisation needs that many.
SMALLEST_SHARD = 32
# The Keras dtype policy of each `--precision`.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
# The environment variable by which oneDNN computes TensorFlow's convolutions on a processor, or does not.
ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
_has_set_threads = False  # those of this process, for a training with towers or for answers
_is_deterministic = False  # whether TensorFlow was told so in this process
_BACKEND = "set KERAS_BACKEND=tensorflow"


def import_tensorflow() -> None:
    """Imports TensorFlow without the notes that its libraries write to stderr before any log level applies, lets it take
    the memory of GPUs as it needs it, and compute in float32 where that is asked for, not in TensorFloat-32.

    Errors still come as exceptions. A user who sets TF_CPP_MIN_LOG_LEVEL sees everything. Where TensorFlow is imported by this, oneDNN
    computes on processors with AVX2 that have no instructions for neural networks, too; a user who sets TF_ENABLE_ONEDNN_OPTS decides.

    Raises:
        UsageError: Keras is set to what the networks cannot use, see `check_keras`.
    """
    # TensorFlow imports Keras, which ends in a traceback where there is no such backend.
    _check_keras_setting("the backend", "tensorflow", os.environ.get("KERAS_BACKEND") or "tensorflow", _BACKEND)
    _switch_onednn_on()
    if "tensorflow" not in sys.modules and "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
        sys.stderr.flush()
        kept = os.dup(2)
        try:
            with Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), 2)
                import tensorflow as tf

                tf.config.list_physical_devices()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it has computed already: too late, and no reason to stop
            tf.config.experimental.set_memory_growth(gpu, True)
    # Else GPUs of compute capability 8 or more round what they multiply in float32 to 10 bits.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    check_keras()


def check_keras() -> None:
    """Sees whether Keras is set up as the networks need it, by the environment or by keras.json.

    Raises:
        UsageError: it has another backend than TensorFlow, has the channels first, or computes in other numbers than float32.
    """
    try:
        import keras
    except (ImportError, ValueError) as error:  # a backend that is not installed, or that there is not
        raise UsageError(
            f"Keras could not be imported with the backend of keras.json ({shorten(str(error))}); {_BACKEND}"
        ) from error
    _check_keras_setting("the backend", "tensorflow", keras.backend.backend(), _BACKEND)
    _check_keras_setting("image_data_format", "channels_last", keras.config.image_data_format(), "mend keras.json")
    precision = "mend keras.json, and use --precision for the heavy arithmetic"
    _check_keras_setting("floatx", "float32", keras.config.floatx(), precision)


def _check_keras_setting(what, expected, received, remedy):
    if received != expected:
        raise UsageError(f"Keras must have {what} {expected}, received {shorten(received, 50)}; {remedy}")


def _switch_onednn_on():
    """Before TensorFlow is imported, which reads it once, and unless the user has decided."""
    if "tensorflow" not in sys.modules and _has_avx2():
        os.environ.setdefault(ONEDNN, "1")


def _has_avx2():
    """Whether this is Linux on a processor of Intel or AMD with AVX2. Elsewhere TensorFlow's own choice stays."""
    return "avx2" in processor_flags()


def note_missing_onednn(strategy: str) -> None:
    """Says once that this process computes without oneDNN, and what to do; see docs/speed.md.

    So it is on a processor with AVX2 and without newer instructions where TensorFlow was not imported by `import_tensorflow`.

    Args:
        strategy: a `--strategy`; one that uses GPUs says nothing.
    """
    if used_gpus(strategy) or ONEDNN in os.environ or has_onednn() is not False or not _has_avx2():
        return
    say_once(
        f"TensorFlow computes without oneDNN, with which most trainings are faster on this processor; set {ONEDNN}=1 before its first import, "
        "or call resnet_study.devices.import_tensorflow() first"
    )


def explain_missing_gpu() -> str:
    """Why TensorFlow lists no GPU on a machine that has one, in one sentence; "" where it lists one, there is none, or it was hidden
    by the user.
    """
    import tensorflow as tf

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")
    there = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi")
    if hidden or not there or tf.config.list_physical_devices("GPU"):
        return ""
    if sys.platform == "win32":
        return "TensorFlow uses no GPU under Windows itself; train under WSL2"
    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        return "this TensorFlow is built without CUDA: install the extra gpu"
    return (
        "the driver is not loaded or does not fit, or a library of CUDA is missing: install the extra gpu; "
        "TF_CPP_MIN_LOG_LEVEL=0 shows what TensorFlow looks for"
    )


def is_bfloat16_faster(strategy: str) -> bool:
    """Whether the devices of a `--strategy` compute faster in bfloat16 than in float32: GPUs of compute capability 8 or more, processors
    with AMX, and those of AMD with AVX512-BF16. TensorFlow uses the instructions of a processor by oneDNN alone.

    With AVX512-BF16 and without AMX, as a virtual machine may show it, an Intel Xeon takes 1.5 to 1.7 times as long in bfloat16.
    """
    import tensorflow as tf

    details = [tf.config.experimental.get_device_details(gpu) for gpu in used_gpus(strategy)]
    if details:
        return all(detail.get("compute_capability", (0, 0)) >= (8, 0) for detail in details)
    if os.environ.get(ONEDNN, "1").lower() in ("0", "false"):
        return False
    flags = processor_flags()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and "AuthenticAMD" in flags)


def choose_policy(precision: str, strategy: str, stored: str | None = None) -> str:
    """The Keras dtype policy of a run: variables stay float32, bfloat16 is for the heavy arithmetic only.

    Args:
        precision: "float32", "bfloat16", "float16", or "auto" = bfloat16 where the devices of the run are faster in it.
        strategy: of the run, see `choose_strategy`, which comes before this.
        stored: the policy of a run that goes on, which "auto" keeps on whatever machine; one line says where that is slow.
    """
    if precision != "auto":
        return POLICIES[precision]
    is_faster = is_bfloat16_faster(strategy)
    if stored == POLICIES["bfloat16"] and not is_faster:
        print("this machine is slower in bfloat16 than in float32: the run goes on in it, as it was begun")
    return stored or POLICIES["bfloat16" if is_faster else "float32"]


def policy_of_chief(strategy, policy: str) -> str:
    """The policy that the chief has chosen, on every machine; all of them must call this at the same time."""
    known = sorted(POLICIES.values())
    return known[int(workers.from_chief(strategy, [known.index(policy)])[0])]


def choose_towers(towers: int, strategy, batch_size: int, stored: int | None = None) -> int:
    """How many shards of a batch the cores of a processor share, see `resnet_study.training.step`; sets the threads of TensorFlow.

    Args:
        towers: of the settings; 0 = one for each core, where a shard has at least 32 images; 1 on GPUs and with several replicas.
        strategy: of `choose_strategy`.
        batch_size: images of a batch.
        stored: what a run that goes on was begun with, which 0 keeps on whatever machine.

    Raises:
        UsageError: the batch cannot be shared among the replicas, has fewer images than `towers`, or several replicas share it already.
    """
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise UsageError(
            f"--train_batch_size must be a multiple of the {replicas} devices, received {batch_size} (images of a part with --accumulate or --hard_share)"
        )
    if towers > 1 and replicas > 1:
        raise UsageError(f"--towers={towers} is for one device, received {replicas} of them; use --towers=1")
    if replicas > 1 and not towers and (stored or 1) > 1:
        raise UsageError(
            f"expected one device for a run that was begun with {stored} towers, received {replicas}; give --strategy=one_gpu or cpu"
        )
    if towers > batch_size:
        raise UsageError(
            f"--towers must be at most the {batch_size} images of a batch, or of a part of it (--accumulate, --hard_share), received {towers}"
        )
    cores = count_cores()
    on_processor = replicas == 1 and not tf.config.get_visible_devices("GPU")
    chosen = towers or stored or (max(1, min(cores, batch_size // SMALLEST_SHARD)) if on_processor else 1)
    if chosen > 1 and on_processor:
        _set_threads(-(-cores // chosen), cores)
    elif on_processor and _has_set_threads:
        say_once(
            "TensorFlow's threads were set earlier in this process, for towers, and stay: one tower is faster in a process of its own"
        )
    return chosen


def share_batches() -> None:
    """Lets the cores of a processor share the batches of a `Predictor`, for a process that answers and trains nothing.

    It gives each operation of TensorFlow one thread, which must happen before it computes. Networks for small images infer faster so, see
    docs/speed.md; those for large ones gain nothing.
    """
    import tensorflow as tf

    if tf.config.get_visible_devices("GPU"):
        return
    global _has_set_threads
    with contextlib.suppress(RuntimeError):  # it has computed already: then the cores share each operation
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(count_cores())
        _has_set_threads = True


def split_among_towers(count: int, *arrays) -> list[tuple]:
    """Splits arrays along their first axis into `count` nearly equal parts, of one length known to TensorFlow where theirs is."""
    import tensorflow as tf

    size = arrays[0].shape[0] or tf.shape(arrays[0])[0]
    bounds = [number * size // count for number in range(count + 1)]
    return [tuple(array[start:end] for array in arrays) for start, end in itertools.pairwise(bounds)]


def count_inference_towers() -> int:
    """Shards of a batch in inference: as many as the cores compute at a time where the threads of an operation were set, else 1."""
    import tensorflow as tf

    threading = tf.config.threading
    of_an_operation = threading.get_intra_op_parallelism_threads()
    if not of_an_operation or tf.config.get_visible_devices("GPU"):
        return 1
    return max(1, (threading.get_inter_op_parallelism_threads() or count_cores()) // of_an_operation)


def _set_threads(of_an_operation: int, operations: int):
    """Lets TensorFlow compute so many operations at a time, each with so many threads; says so where it is too late."""
    import tensorflow as tf

    global _has_set_threads
    threading = tf.config.threading
    wanted = (of_an_operation, operations)
    if (threading.get_intra_op_parallelism_threads(), threading.get_inter_op_parallelism_threads()) == wanted:
        return
    try:
        threading.set_intra_op_parallelism_threads(of_an_operation)
        threading.set_inter_op_parallelism_threads(operations)
        _has_set_threads = True
    except RuntimeError:
        say_once(
            f"TensorFlow has computed in this process already, so its threads stay as they are; towers are faster with {of_an_operation} "
            "for each operation, and sums may differ in their last bits: train in a process of its own"
        )


def choose_strategy(name: str):
    """Where a model is trained; the global batch stays what the settings say.

    Args:
        name: "auto" = all GPUs if there are two or more, else one device; "cpu"; "one_gpu"; "mirrored" = all GPUs, or all
            logical CPU devices where there is no GPU; "multi_worker" = all GPUs, or the processor, of each of the machines
            in TF_CONFIG. The last must come before any computation of the process, and waits for the other machines.

    Returns:
        tf.distribute.Strategy.

    Raises:
        UsageError: there is no such device, or TF_CONFIG is missing or wrong.
    """
    import tensorflow as tf

    reason = explain_missing_gpu() if name != "cpu" else ""
    gpus = tf.config.list_physical_devices("GPU")
    if name == "one_gpu" and not gpus:
        raise UsageError(
            f"--strategy=one_gpu needs a GPU, TensorFlow found none ({reason or 'this machine seems to have none'}); use "
            "--strategy=cpu or install the extra 'gpu'"
        )
    if reason:
        say_once(f"the GPU of this machine is not used, the processor is: {reason}")
    if name == "multi_worker":
        return workers.join_workers()
    visible = tf.config.get_visible_devices("GPU")  # of which an earlier training may have taken some away
    if name == "mirrored" or (name == "auto" and len(visible) > 1):
        devices = tf.config.list_logical_devices("GPU" if visible else "CPU")
        if len(devices) < 2:
            raise UsageError(
                f"--strategy=mirrored needs two devices or more, TensorFlow found {len(devices)}; use --strategy=auto"
            )
        return _mirror(tuple(device.name for device in devices))
    if name in ("cpu", "one_gpu"):
        try:
            tf.config.set_visible_devices(gpus[:1] if name == "one_gpu" else [], "GPU")
        except RuntimeError as error:
            raise UsageError(
                f"--strategy={name} must come before any computation of the process ({error}); use --strategy=auto, or hide the "
                "others by CUDA_VISIBLE_DEVICES"
            ) from error
    return tf.distribute.get_strategy()


@functools.cache
def _mirror(devices: tuple[str, ...]):
    """One strategy for each set of devices: a second one would take up the first one's exchanges, which have the shapes of its network."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(list(devices))


def describe_strategy(strategy, towers: int = 1) -> str:
    """In words: how many machines, devices and towers share each batch."""
    import tensorflow as tf

    replicas = strategy.num_replicas_in_sync
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return f"MultiWorkerMirroredStrategy over {len(workers.read_tf_config().addresses)} machines with {replicas} devices in all"
    if isinstance(strategy, tf.distribute.MirroredStrategy):
        return f"MirroredStrategy over {replicas} devices"
    return "one device" + (f" in {towers} towers" if towers > 1 else "")


def set_up(seed: int, deterministic: bool) -> None:
    """Seeds every generator and, if asked, makes every operation repeat bit by bit. Call before building a model."""
    import_tensorflow()
    import keras
    import tensorflow as tf

    global _is_deterministic
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
        _is_deterministic = True
    elif _is_deterministic:
        say_once(
            "an earlier training of this process was --deterministic, which stays: a process of its own may be faster"
        )
