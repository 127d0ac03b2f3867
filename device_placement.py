"""On what and how it is computed: number format, threads, determinism, and a record of both machine and versions."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from hyper_parameters import UsageError

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "scikit-learn", "matplotlib", "pandas")


def import_tensorflow() -> None:
    """Imports TensorFlow without the notes that its libraries write to stderr before any log level applies.

    Errors still come as exceptions. A user who sets TF_CPP_MIN_LOG_LEVEL sees everything.
    """
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
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


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively: AVX512-BF16 or AMX, or a GPU of compute capability 8 or more."""
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0)
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def choose_policy(precision: str) -> str:
    """The Keras dtype policy for a `--precision`: variables stay float32, bfloat16 is for the heavy arithmetic only."""
    native = precision == "auto" and computes_bfloat16()
    return "mixed_bfloat16" if native or precision == "bfloat16" else "float32"


def choose_strategy(name: str):
    """Where a net is trained; the global batch stays what the settings say.

    Args:
        name: "auto" = all GPUs if there are two or more, else one device; "cpu"; "one_gpu"; "mirrored" = all GPUs, or all
            logical CPU devices where there is no GPU.

    Returns:
        tf.distribute.Strategy.

    Raises:
        UsageError: there is no such device.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if name == "one_gpu" and not gpus:
        raise UsageError(
            "--strategy=one_gpu needs a GPU, TensorFlow found none; use --strategy=cpu or install the extra 'gpu'"
        )
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = tf.config.list_logical_devices("GPU" if gpus else "CPU")
        if len(devices) < 2:
            raise UsageError(
                f"--strategy=mirrored needs two devices or more, TensorFlow found {len(devices)}; use --strategy=auto"
            )
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if name == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif name == "one_gpu":
        tf.config.set_visible_devices(gpus[:1], "GPU")
    return tf.distribute.get_strategy()


def set_up(seed: int, deterministic: bool) -> None:
    """Seeds every generator and, if asked, makes every operation repeat bit by bit. Call before building a net."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)


def describe_environment(policy: str) -> dict:
    """Versions, devices, commit, command: what a reader needs to judge or repeat a number."""
    import tensorflow as tf

    return {
        "command": " ".join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")
        ],
        "dtype_policy": policy,
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """Commit of the code, with '+' where files differ from it; None outside a clone."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip()


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
