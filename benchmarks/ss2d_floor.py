"""How near the fused CPU scan comes to its operation floor, and how its time grows: ``python benchmarks/ss2d_floor.py``.

The floor is what `ss2d_floor.cpp` measures in the same run: the same arithmetic on data in the first-level cache with no pixel
waiting for the one before. Needs the kernels built in the working tree (``tools/build_native.sh``) and the compiler
that built them. Times are the least of many, taken in turns; with one thread it is the thread's own time, which
other programs on the machine disturb least, with more it is time on the wall.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vmamba.kernels.native import library as native
from vmamba.kernels.native.ss2d_scan import ss2d_scan

ROOT = Path(__file__).parents[1]
GIGA = 1e-9


def build_floor(isa: str, folder: Path) -> ctypes.CDLL:
    """Compile the floor with the flags that the kernels of ``isa`` were compiled with, and load it."""
    flags = (ROOT / f"build/native/CMakeFiles/vmamba_{isa}.dir/flags.make").read_text()
    words = re.findall(r"^CXX_(?:FLAGS|DEFINES) = (.*)$", flags, re.MULTILINE)
    compiler = re.search(
        r"^CMAKE_CXX_COMPILER:\w+=(.*)$", (ROOT / "build/native/CMakeCache.txt").read_text(), re.MULTILINE
    )
    library = folder / "floor.so"
    source = ROOT / "benchmarks" / "ss2d_floor.cpp"
    subprocess.run(
        [compiler[1] if compiler else "c++", *" ".join(words).split(), f"-I{ROOT / 'csrc'}", "-shared", "-fPIC"]
        + [str(source), "-o", str(library)],
        check=True,
    )
    return ctypes.CDLL(str(library))


def inputs(b: int, h: int, w: int, d: int, n: int, r: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Inputs of the size that trained models have: steps of 0.001 to 0.1, decays -1 … -n."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return [
        normal(b, h, w, d).to(dtype),
        normal(b, h, w, 4, r + 2 * n).to(dtype),
        normal(4, d, r) * r**-0.5,
        normal(4, d) - 4.6,
        -torch.arange(1.0, n + 1).repeat(4 * d, 1),
        torch.ones(4 * d),
    ]


def least(
    calls: list[Callable[[], object]], clock: Callable[[], float] = time.perf_counter, seconds: float = 0.8
) -> list[float]:
    """The least time of each call, taken in turns for about ``seconds`` each."""
    best = [float("inf")] * len(calls)
    for call in calls:
        call()
    end = time.perf_counter() + seconds * len(calls)
    while time.perf_counter() < end:
        for i, call in enumerate(calls):
            begin = clock()
            call()
            best[i] = min(best[i], clock() - begin)
    return best


def forward(tensors: list[Tensor]) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            ss2d_scan(*tensors, "cross2d", True)

    return call


def forward_backward(tensors: list[Tensor]) -> Callable[[], object]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    dy = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1))
    return lambda: torch.autograd.grad(ss2d_scan(*leaves, "cross2d", True), leaves, dy)


def floor(library: ctypes.CDLL, shape: tuple[int, ...], threads: int) -> Callable[[], object]:
    """The floor's work for this shape, shared among Python threads (ctypes releases the interpreter)."""
    b, h, w, d, n, r = shape
    lanes = library.ss2d_floor(ctypes.c_int64(1), ctypes.c_int64(1), ctypes.c_int64(0))
    chunks = b * h * w * 4 * d / lanes / 64
    arguments = ctypes.c_int64(r), ctypes.c_int64(n), ctypes.c_int64(round(chunks / threads))

    def call() -> None:
        workers = [threading.Thread(target=library.ss2d_floor, args=arguments) for _ in range(threads - 1)]
        for worker in workers:
            worker.start()
        library.ss2d_floor(*arguments)
        for worker in workers:
            worker.join()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.8, help="time for each measurement")
    options = parser.parse_args()
    threads, seconds = options.threads, options.seconds
    print(f"instruction set {native.isa()}, {threads} threads; G/s: direction·pixel·channels a nanosecond")
    with tempfile.TemporaryDirectory() as folder:
        library = build_floor(native.isa(), Path(folder))
        print(
            "\n     b    h    w    d   n   r | floor  forward  share  back+forth (1 thread, G/s) | floor forward share"
        )
        stages = [(56, 96, 1, 6), (28, 192, 1, 12), (14, 384, 1, 24), (7, 768, 1, 48), (56, 192, 16, 6)]
        shapes = [(b, s, s, d, n, r) for b in (1, 8) for s, d, n, r in stages]
        for shape in shapes:
            b, h, w, d, _, _ = shape
            work, tensors = b * h * w * 4 * d * GIGA, inputs(*shape)
            torch.set_num_threads(1)
            f, one, both = least(
                [floor(library, shape, 1), forward(tensors), forward_backward(tensors)], time.thread_time, seconds
            )
            torch.set_num_threads(threads)
            many, many_both = least([forward(tensors), forward_backward(tensors)], seconds=seconds)
            time.sleep(0.2)  # torch's threads keep spinning for a while after their work
            (many_f,) = least([floor(library, shape, threads)], seconds=seconds)
            print(
                f"{''.join(f'{v:5}' for v in shape)} | {work / f:5.2f}  {work / one:7.2f}  {f / one:5.2f}  {both / one:10.2f}"
                f" {'':17}| {work / many_f:5.2f} {work / many:7.2f} {many_f / many:5.2f}"
                f"  {many * 1e3:.2f} ms, {many_both / many:.2f} times with backward, {one / many:.2f} times one thread's"
            )
        print("\ntime a pixel against 56 × 56's, d = 96, n = 1, r = 6")
        for side in (112, 128, 168, 224):
            small, large = inputs(1, 56, 56, 96, 1, 6), inputs(1, side, side, 96, 1, 6)
            row = []
            for count, clock in ((1, time.thread_time), (threads, time.perf_counter)):
                torch.set_num_threads(count)
                for make in (forward, forward_backward):
                    a, b_ = least([make(small), make(large)], clock, seconds)
                    row.append(f"{b_ / side**2 * 56**2 / a:.2f}")
            print(f"{side:4}: forward {row[0]}, with backward {row[1]} (1 thread); {row[2]}, {row[3]}")
        print("\n16-bit inputs against float32, b = 8, 56 × 56, d = 96")
        for dtype in (torch.bfloat16, torch.float16):
            shape = (8, 56, 56, 96, 1, 6)
            row = []
            for count, clock in ((1, time.thread_time), (threads, time.perf_counter)):
                torch.set_num_threads(count)
                a, b_ = least([forward(inputs(*shape)), forward(inputs(*shape, dtype))], clock, seconds)
                row.append(f"{b_ / a:.2f}")
            print(f"{dtype}: {row[0]} (1 thread), {row[1]}")


if __name__ == "__main__":
    main()
