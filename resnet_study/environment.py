"""What machine and which versions this is: the record that stands beside every number."""

import contextlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path

# Flags of instructions that decide the speed, the newest first, and how they are called.
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
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
        "command": shlex.join([*name_program(), *sys.argv[1:]]),
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
        "onednn": has_onednn(),
        "towers": towers,
    }


def name_program() -> list[str]:
    """The words by which this process was started, without its flags: `python cifar10_main.py`, `python -m flowers.train` or `cifar10`."""
    if module := getattr(sys.modules["__main__"], "__spec__", None):
        return ["python", "-m", module.name]
    name = Path(sys.argv[0]).name
    return ["python", name] if name.endswith(".py") or name in ("", "-c") else [name.removesuffix(".exe")]


def used_gpus(strategy: str) -> list:
    """The GPUs of this machine that a run under a `--strategy` computes on; none = it computes on the processor."""
    import tensorflow as tf

    gpus = [] if strategy == "cpu" else tf.config.get_visible_devices("GPU")
    return gpus[:1] if strategy == "one_gpu" else gpus


def processor_flags() -> frozenset[str]:
    """What Linux says the processor can do, such as "avx2", and its maker; empty on other systems."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def has_onednn() -> bool | None:
    """Whether oneDNN computes TensorFlow's convolutions on the processor, decided when TensorFlow was imported; None where it does not tell."""
    import tensorflow as tf  # noqa: F401 - what is asked belongs to it

    try:
        from tensorflow.python.util import _pywrap_util_port  # no public function tells it

        return _pywrap_util_port.IsMklEnabled()
    except (ImportError, AttributeError):
        return None


def describe_versions() -> str:
    """Versions, platform and processor, a line each; imports none of what it names."""
    commit = _commit()
    names = {"resnet-study": f" (commit {commit})" if commit else ""} | dict.fromkeys(("keras", "tensorflow"), "")
    lines = [f"{name} {_version(name) or 'not installed'}{more}" for name, more in names.items()]
    cores = count_cores()
    processor = f"{_processor()}, {cores} core{'s' * (cores > 1)}"
    return "\n".join([*lines, f"Python {platform.python_version()} on {platform.platform()}", processor])


def count_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has: by its affinity, or by the quota of a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_read_quotas(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]))


def _read_quotas(groups: Path, folder: Path) -> list[int]:
    """Cores that the quotas of the control groups (version 2) named in `groups` come to, rounded up; `folder`: where these lie."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # what cannot be read limits nothing
        for line in groups.read_text().splitlines():
            _, kind, place = line.split(":", 2)
            own = folder / place.lstrip("/")
            for group in (own, *own.parents) if not kind else ():
                if group.is_relative_to(folder) and (group / "cpu.max").exists():
                    quota, period = (group / "cpu.max").read_text().split()
                    found += [-(-int(quota) // int(period))] if quota != "max" else []
    return found


def free_memory() -> int | None:
    """Bytes of memory that this process can still take: of the machine, or of the control group (a container, a job of Slurm) that it runs
    in, where that has less; None where the system does not tell.
    """
    machine = Path("/proc/meminfo")
    if not machine.exists():
        return None
    free = int(re.search(r"MemAvailable:\s+(\d+)", machine.read_text())[1]) * 1024
    return min([free, *(limit - used for limit, used in _memory_limits())])


def largest_memory() -> int | None:
    """Bytes of memory that a process can have at most: of the machine, or of the control group that this one runs in, where that has less;
    None where the system does not tell.
    """
    if not hasattr(os, "sysconf"):
        return None
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *(limit for limit, _ in _memory_limits())])


def _memory_limits(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[tuple[int, int]]:
    """Limit and use in bytes of the control groups named in `groups`; `root`: where these lie. Pages of files that can be given up do not
    count as used.
    """
    found = []
    with contextlib.suppress(OSError, ValueError):  # what cannot be read limits nothing
        for line in groups.read_text().splitlines():
            _, kind, place = line.split(":", 2)
            # Version 1 has a tree for each kind of limit, version 2 one without a name. A container may see its own as the root.
            files = {"memory": ("memory", "limit_in_bytes", "usage_in_bytes"), "": ("", "max", "current")}
            tree, *names = files.get(kind, ("",))
            folder = root / tree
            for group in (folder / place.lstrip("/"), *(folder / place.lstrip("/")).parents):
                if (
                    names
                    and group.is_relative_to(folder)
                    and all((group / f"memory.{name}").exists() for name in names)
                ):
                    limit, used = ((group / f"memory.{name}").read_text().strip() for name in names)
                    pages = re.findall(r"^(?:in)?active_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
                    found += [(int(limit), int(used) - sum(map(int, pages)))] if limit != "max" else []
    return found


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
        if sys.platform == "darwin":  # where the former says "arm" for all
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip() or platform.processor()
        return platform.processor()
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    name, flags = next(named, platform.processor()), processor_flags()
    # Virtual machines may call processors that differ in speed by three times the same: "AMD EPYC".
    best = next((words for flag, words in _INSTRUCTIONS.items() if flag in flags), "")
    return f"{name} with {best}" if best else name
