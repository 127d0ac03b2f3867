"""What machine and which versions this is: the record that stands beside every number."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

PACKAGES = ("tensorflow", "keras", "numpy", "opencv-python-headless", "scikit-learn", "matplotlib", "pandas")


def describe_environment(policy: str, strategy: str = "auto", towers: int = 1) -> dict:
    """Versions, devices, commit, command: what a reader needs to judge or repeat a number.

    Args:
        policy: number format, see `devices.choose_policy`.
        strategy: of the run, see `devices.choose_strategy`; the GPUs are those that it computes on.
        towers: of the run, see `devices.choose_towers`.
    """
    import tensorflow as tf

    return {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": count_cores(),
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in used_gpus(strategy)
        ],
        "dtype_policy": policy,
        "towers": towers,
    }


def used_gpus(strategy: str) -> list:
    """The GPUs of this machine that a run under a `--strategy` computes on; none = it computes on the processor."""
    import tensorflow as tf

    gpus = [] if strategy == "cpu" else tf.config.get_visible_devices("GPU")
    return gpus[:1] if strategy == "one_gpu" else gpus


def describe_versions() -> str:
    """Versions, platform and processor, a line each; imports none of what it names."""
    commit = _commit()
    names = {"resnet-study": f" (commit {commit})" if commit else ""} | dict.fromkeys(("keras", "tensorflow"), "")
    lines = [f"{name} {_version(name) or 'not installed'}{more}" for name, more in names.items()]
    cores = count_cores()
    processor = f"{_processor()}, {cores} core{'s' * (cores > 1)}"
    return "\n".join([*lines, f"Python {platform.python_version()} on {platform.platform()}", processor])


def count_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """Commit of the code, with '+' where files differ from it; None outside a clone."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():  # installed, perhaps inside somebody else's repository
        return None
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
