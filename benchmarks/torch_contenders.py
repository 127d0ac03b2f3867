"""The contenders that compute with PyTorch, in an environment that may have nothing else but NumPy and what the library's own
ground needs."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import (
    BATCH,
    CONTENDERS,
    blocks_of,
    check_parameters,
    draw_images,
    scale_images,
    time_inference,
    training_result,
)


def measure_torch(job: dict) -> dict:
    """PyTorch as users write it for a processor: channels last, bfloat16 by autocast; eager, compiled, or compiled in processes
    that share each batch.
    """
    try:
        import torch
    except ImportError as error:
        return {"missing": str(error)}
    contender = CONTENDERS[job["contender"]]
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # as torch.compile chooses
    if contender.compiled and not shutil.which(compiler):
        return {"missing": f"torch.compile needs a C++ compiler, found no {compiler}"}
    facts = {"number_format": contender.number_format, "software": f"PyTorch {torch.__version__}"}
    if job["part"] == "inference":
        return facts | _infer(job)
    if "rank" in job:
        return facts | _train_with_others(job)
    return facts | (_train(job) if contender.processes == 1 else _start_processes(job))


def _start_processes(job):
    """Measures in as many processes as the contender has. Returns the rate of the first, and the memory of all."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(__file__).with_name("throughput.py")
        started = []
        for rank in range(CONTENDERS[job["contender"]].processes):
            part = json.dumps(job | {"rank": rank, "meeting": f"{folder}/meeting"})
            started.append(
                subprocess.Popen([sys.executable, program, "--measure", part], stdout=subprocess.PIPE, text=True)
            )
        printed = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"one of {len(started)} processes ended with an error")
    results = [json.loads(text.splitlines()[-1]) for text in printed]
    return results[0] | {"training_memory": sum(result["training_memory"] for result in results)}


def _train_with_others(job):
    """One of the processes that share each batch: with one thread, and with gradients averaged over all by gloo."""
    import torch

    torch.set_num_threads(1)
    processes = CONTENDERS[job["contender"]].processes
    # The others wait while one of them still compiles.
    torch.distributed.init_process_group("gloo", init_method=f"file://{job['meeting']}", rank=job["rank"], world_size=processes,
                                         timeout=datetime.timedelta(minutes=15))  # fmt: skip
    try:
        return _train(job)
    finally:
        torch.distributed.destroy_process_group()


def _train(job):
    import torch

    contender = CONTENDERS[job["contender"]]
    network, images, targets = _make(job)
    shard = BATCH // contender.processes
    first = job.get("rank", 0) * shard
    batches = [
        (batch[first : first + shard], target[first : first + shard])
        for batch, target in zip(images.split(BATCH), targets.split(BATCH), strict=True)
    ]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.04, momentum=0.9, nesterov=True, fused=contender.compiled)
    if contender.processes > 1:
        # Statistics of batch norm are not exchanged at each step, which spares it the most.
        network = torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)

    def compute_loss(batch, target):
        with _autocast(job):
            return torch.nn.functional.cross_entropy(network(batch), target)

    if contender.compiled:
        compute_loss = torch.compile(compute_loss, dynamic=False)  # the backward pass with it
    ends = []
    for batch, target in batches:
        optimizer.zero_grad()
        loss = compute_loss(batch, target)
        loss.backward()
        optimizer.step()
        loss.item()  # the others know their loss after every step too
        ends.append(time.perf_counter())
    return training_result(ends, job)


def _infer(job):
    import torch

    network, images, _ = _make(job)
    network.eval()
    if CONTENDERS[job["contender"]].compiled:
        import torch._inductor.config

        torch._inductor.config.freezing = True  # weights are constants, batch norm is folded into convolutions
        network = torch.compile(network, dynamic=False)

    def infer(part, size):
        with torch.no_grad(), _autocast(job):
            return torch.cat([network(batch).float() for batch in part.split(size)]).numpy()

    return time_inference(infer, images)


def _make(job):
    """The network, and images float32 [n, 3, 32, 32] and labels of all steps; images and weights have the channels last."""
    import torch

    images, labels = draw_images(job)
    images = torch.from_numpy(scale_images(images)).permute(0, 3, 1, 2)
    network = build_torch(blocks_of(job["model"])).to(memory_format=torch.channels_last)
    check_parameters(network.parameters(), job)
    return network, images, torch.from_numpy(labels).long()


def _autocast(job):
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=CONTENDERS[job["contender"]].number_format == "bfloat16")


def build_torch(blocks: int):
    """The same network as a PyTorch module; input [batch, 3, 32, 32]."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, channels, filters):
            super().__init__()
            self.missing = filters - channels
            self.conv1 = nn.Conv2d(channels, filters, 3, 2 if self.missing else 1, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(filters)
            self.conv2 = nn.Conv2d(filters, filters, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(filters)

        def forward(self, x):
            residual = functional.relu(self.norm1(self.conv1(x)), inplace=True)
            residual = self.norm2(self.conv2(residual))
            if self.missing:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.missing // 2, self.missing // 2))
            return functional.relu(x + residual, inplace=True)

    widths = [filters for filters in (16, 32, 64) for _ in range(blocks)]
    parts = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    parts += [Block(channels, filters) for channels, filters in zip([16, *widths], widths, strict=False)]
    network = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    return network
