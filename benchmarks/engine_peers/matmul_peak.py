"""Not a trainer: large bf16 matrix products, in the same turns as the others. What a share of the peak is a share of.

The best of a few square sizes is found in the warm-up turn; a step then is some 0.3 seconds of it. The
"tokens" that are reported are floating-point operations.
"""

from __future__ import annotations

import time

from turns import Turns

turns = Turns()
import torch  # noqa: E402

SIZES = (1024, 2048, 4096)


def seconds(size: int) -> float:
    """Of a product of two size x size matrices, at its best."""
    a, b = torch.randn(size, size).bfloat16(), torch.randn(size, size).bfloat16()
    torch.mm(a, b)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Multiplies until the race is over."""
    turns.imported()
    rates = {size: 2 * size**3 / seconds(size) for size in SIZES}
    best = max(rates, key=lambda size: rates[size])
    a, b = torch.randn(best, best).bfloat16(), torch.randn(best, best).bfloat16()
    times = max(1, round(0.3 * rates[best] / (2 * best**3)))
    turns.built(settings={"size": best, "times": times}, versions={"torch": torch.__version__})
    with turns.race():
        while True:
            for _ in range(times):
                torch.mm(a, b)
            turns.step_done()
    turns.report(tokens=[2 * best**3 * times] * turns.steps, losses=[])


if __name__ == "__main__":
    main()
