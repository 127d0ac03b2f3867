"""What the benchmark of throughput measures, and what all measuring processes share: images, clock, memory.

Nothing here may import TensorFlow: a PyTorch process imports this file too, possibly without TensorFlow, and the peak memory that
Linux reports of a process begins at that of the one that started it.
"""

import dataclasses
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the library, also where it is not installed

import numpy as np

from resnet_study.networks import registry

PARTS = ("inference", "training")
BATCH = 128
MATRIX_SIZE = 4096
PIPELINE_BATCHES = 100
INFERENCE_BATCHES = (128, 512)


@dataclasses.dataclass(frozen=True)
class Contender:
    """How a network is trained and used.

    Attributes:
        library: "stock" (Keras), "ours" or "torch".
        number_format: "float32", "bfloat16", or "auto" = bfloat16 where the processor is faster in it.
        compiled: by XLA or by `torch.compile`.
        processes: that share each batch; more than one have one thread each.
        one_core: of the machine alone, instead of all.
        onednn: is asked for; without, TensorFlow uses it on processors with instructions for neural networks only.
        parts: of `PARTS` that are measured.
        is_for_deep: whether networks deeper than ResNet-56 are measured too.
        once: in the first round only.
    """

    library: str
    number_format: str = "float32"
    compiled: bool = False
    processes: int = 1
    one_core: bool = False
    onednn: bool = False
    parts: tuple[str, ...] = PARTS
    is_for_deep: bool = True
    once: bool = False


CONTENDERS = {
    "stock": Contender("stock"),
    "stock-onednn": Contender("stock", onednn=True, is_for_deep=False),
    "stock-jit": Contender("stock", compiled=True, is_for_deep=False, once=True),
    "ours": Contender("ours", "auto"),
    "ours-float32": Contender("ours"),
    "ours-one-core": Contender("ours", "auto", one_core=True, parts=("training",), is_for_deep=False),
    "torch-float32": Contender("torch"),
    "torch-bfloat16": Contender("torch", "bfloat16"),
    "torch-compile-float32": Contender("torch", compiled=True),
    "torch-compile-bfloat16": Contender("torch", "bfloat16", compiled=True),
    "torch-ddp-float32": Contender("torch", compiled=True, processes=2, parts=("training",)),
    "torch-ddp-bfloat16": Contender("torch", "bfloat16", compiled=True, processes=2, parts=("training",)),
}


def training_flop(blocks: int) -> int:
    """Floating-point operations to train one 32x32x3 image with the network of depth 6*blocks+2, ten classes.

    A multiply-add is two operations; the gradients by the inputs and by the weights cost as much as the way forward, each.
    Convolutions and the dense layer only, which leaves out less than 2 %.
    """
    return 3 * 2 * registry.find(f"resnet{6 * blocks + 2}").multiply_adds


def blocks_of(model: str) -> int:
    """Residual blocks in each stage of a network of the registry; its depth is six times that and two."""
    return registry.find(model).options["num_residual_blocks"]


def steps_for(blocks: int, steps: int) -> int:
    """Timed steps of a network, at least 3: `steps` for ResNet-20, fewer for deeper ones, so that all take about as long."""
    return max(3, min(steps, round(steps * training_flop(3) / training_flop(blocks))))


def all_steps(job: dict) -> int:
    """Steps to train: the timed ones, and as many before the clock starts, which are slower in every contender."""
    return 2 * job["steps"]


def draw_images(job: dict) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels uint8 [n, 32, 32, 3] and labels int32 [n] in 0..9 for all steps, those before the clock starts included."""
    count = all_steps(job) * BATCH
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), np.uint8), rng.permutation(count).astype(np.int32) % 10


def scale_images(images: np.ndarray) -> np.ndarray:
    """Pixels 0..255 as float32 in -0.5..0.5, which is what the contenders get that do not normalise by themselves."""
    return (images / 255 - 0.5).astype("float32")


def check_parameters(variables, job):
    """Raises AssertionError unless the network has the registered number of trainable parameters."""
    received = 0
    for variable in variables:
        count = 1
        for size in variable.shape:
            count *= size
        received += count
    expected = registry.find(job["model"]).trainable
    if received != expected:
        raise AssertionError(f"{job['contender']} {job['model']} must have {expected} parameters, received {received}")


def rate(ends, job):
    """Images/s of the last `steps` of the steps that ended at `ends`."""
    return job["steps"] * BATCH / (ends[-1] - ends[-1 - job["steps"]])


def training_result(ends, job):
    return {"training_rate": rate(ends, job), "training_memory": peak_memory()}


def time_inference(infer, images):
    """Times `infer(images, batch size)` for each batch size in turn, twice; of each the better time counts. All images pass before the
    clock starts: a processor that has just begun is slower, and would be so for the first size alone.
    """
    largest = max(INFERENCE_BATCHES)
    images = images[: len(images) // largest * largest]  # whole batches: a last, smaller one would be compiled anew
    rates = dict.fromkeys(INFERENCE_BATCHES, 0.0)
    for size in INFERENCE_BATCHES:
        infer(images, size)
    for size in 2 * INFERENCE_BATCHES:
        start = time.perf_counter()
        infer(images, size)
        rates[size] = max(rates[size], len(images) / (time.perf_counter() - start))
    best = max(rates, key=rates.get)
    return {"inference_rate": rates[best], "inference_batch": best, "inference_memory": peak_memory()}


def peak_memory():
    """Largest resident memory of this process so far, MB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes on macOS, KiB elsewhere
