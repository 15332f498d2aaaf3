"""How fast a machine does what a step is made of, for one shape of model: what a forecast of time multiplies with.

Measured here by `calibrate`, or worked out from `hardware`'s table under stated assumptions. Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from strop.plan.packing import Number

__all__ = ["Rates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Operations, bytes and floats a second; seconds where a name ends in `_s`."""

    train_flops: Number  # products of the layers, forward and backward
    attend_flops: Number  # attention, forward and backward
    head_flops: Number  # log-probabilities, forward and backward
    prefill_flops: Number  # products of the layers, forward
    decode: tuple[tuple[int, Number, Number], ...]  # rows; seconds of a token for each of them: in a layer, in the head
    key_s: Number  # a row's look at one cached key, in one layer
    optimizer_floats: Number
    memory_bytes: Number  # reading and writing at once
    disk_bytes: Number  # a checkpoint: written, synced, hashed
    verdicts: Number
    gemm_flops: Number  # one plain product in the same minutes: what other measurements are compared by

    def layer_s(self, rows: Number) -> Number:
        """Of one token for each of so many rows, in one layer; attention apart."""
        return _between(rows, [(num, seconds) for num, seconds, _ in self.decode])

    def word_s(self, rows: Number) -> Number:
        """Of logits and drawing for so many rows."""
        return _between(rows, [(num, seconds) for num, _, seconds in self.decode])

    def faster(self, times: Number) -> Rates:
        """The same machine in minutes when it is so many times as fast."""
        values: dict[str, Any] = {
            key: value / times if key.endswith("_s") else value * times
            for key, value in asdict(self).items()
            if key != "decode"
        }
        decode = tuple((rows, layer / times, word / times) for rows, layer, word in self.decode)
        return Rates(**values, decode=decode)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rates:
        values: dict[str, Any] = {key: value for key, value in data.items() if key != "decode"}
        return cls(**values, decode=tuple((int(rows), float(a), float(b)) for rows, a, b in data["decode"]))


def _between(at: Number, points: Sequence[tuple[int, Number]]) -> Number:
    """On the straight lines between points, and beyond them on the last one; before the first it stays.

    >>> _between(1, [(16, 2.0), (64, 4.0)]), _between(40, [(16, 2.0), (64, 4.0)]), _between(112, [(16, 2.0), (64, 4.0)])
    (2.0, 3.0, 6.0)
    """
    if at <= points[0][0] or len(points) == 1:
        return points[0][1]
    right = next((i for i, (x, _) in enumerate(points) if x >= at), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)
