"""Matrices and rows in 8 bits, for decoding: a scale for every row of either, whole numbers summed exactly, outliers spread out first.

A few entries of a row that are a hundred times the others would leave these no digits. So rows are turned: signs flipped
by a fixed pattern, then mixed within blocks by a Hadamard matrix, which spreads such an entry over its whole block and
changes no product of two turned rows (QuaRot, Ashkboos et al., arXiv 2404.00456). Knows torch's int8 kernels (oneDNN's)
and nothing of models. `fused.py` decodes with it. A processor that these kernels are not exact on multiplies the same
whole numbers in float32: the specification, and slower than not to round at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int32, UInt8
from torch import Tensor

from strop.precision import multiply_in

__all__ = ["Matrix", "Rows", "entry_bytes", "has_int8", "matrix", "rows", "turned", "turned_back"]

BLOCK = 64  # entries mixed at once, at most; a power of two that divides the row's length
MOST = 127
ZERO = 128  # what stands for 0: the kernels want one side without sign
ROWS = 64  # rows that packed matrices are laid out for; others are multiplied as well


@cache
def has_int8() -> bool:
    """Whether this processor sums products of 8 bits exactly, and fast: x86 with VNNI.

    Without it oneDNN adds pairs in 16 bits, which overflow. A fixed rule and no measurement, so that a resumed run decodes
    as it began.
    """
    return bool(torch.cpu.get_capabilities().get("avx512_vnni")) and hasattr(torch.ops.onednn, "qlinear_pointwise")


def entry_bytes() -> int:
    """Of a matrix, here."""
    return 1 if has_int8() else 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What is multiplied: (value - ZERO) times its row's scale."""

    value_BI: UInt8[Tensor, "B I"]
    scale_B1: Float[Tensor, "B 1"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """[out, in] in whole numbers, with a scale for each output."""

    whole: Float[Tensor, "O I"] | None  # where there are no kernels
    packed: Tensor | None  # by oneDNN, where there are
    scale_O: Float[Tensor, " O"]
    zero_O: Int32[Tensor, " O"]

    def times(self, x: Rows) -> Float[Tensor, "B O"]:
        """x @ self.T in float32."""
        if self.packed is None:
            product = self._plain(x)
        else:
            product = torch.ops.onednn.qlinear_pointwise(
                x.value_BI,
                1.0,
                ZERO,
                self.packed,
                self.scale_O,
                self.zero_O,
                None,
                1.0,
                0,
                torch.float32,
                "none",
                [],
                "",
            )
        return product.mul_(x.scale_B1)

    def _plain(self, x: Rows) -> Float[Tensor, "B O"]:
        """Exact while sums stay below 2^24, which takes more than a thousand extremes of one sign."""
        assert self.whole is not None
        with multiply_in("float32"):
            return (x.value_BI.float().sub_(ZERO) @ self.whole.T).mul_(self.scale_O)


def matrix(weight_OI: Float[Tensor, "O I"]) -> Matrix:
    value, scale_O1 = _whole(weight_OI)
    packed = torch.ops.onednn.qlinear_prepack(value, [ROWS, weight_OI.shape[1]]) if has_int8() else None
    return Matrix(
        whole=value.float() if packed is None else None, packed=packed,
        scale_O=scale_O1[:, 0], zero_O=torch.zeros(len(weight_OI), dtype=torch.int32),
    )  # fmt: skip


def rows(x_BI: Float[Tensor, "B I"], by_B1: Float[Tensor, "B 1"] | float = 1.0) -> Rows:
    """`x * by`, whose entries need not be multiplied for it. The operations are those that torch has fast kernels for."""
    value, scale_B1 = _whole(x_BI)
    return Rows(value_BI=value.view(torch.uint8).bitwise_xor_(ZERO), scale_B1=scale_B1.mul_(by_B1))


def _whole(x_BI: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -MOST to MOST, and what each row's were divided by."""
    scale_B1 = x_BI.abs().amax(-1, keepdim=True).clamp_min_(1e-30).div_(MOST)
    return (x_BI * scale_B1.reciprocal()).round_().to(torch.int8), scale_B1


def turned(x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B I"]:
    """The rows of x in other coordinates, the same for all rows of that length: products of two rows stay what they are."""
    signs_I, mixing = _turn(x_BI.shape[-1])
    return _mixed(x_BI * signs_I, mixing)


def turned_back(x_BI: Float[Tensor, "B I"]) -> Float[Tensor, "B I"]:
    signs_I, mixing = _turn(x_BI.shape[-1])
    return _mixed(x_BI, mixing).mul_(signs_I)


def _mixed(x_BI: Tensor, mixing: Tensor) -> Tensor:
    with multiply_in("float32"):  # rounded to bfloat16 there would be nothing left to turn for
        return (x_BI.view(-1, len(mixing)) @ mixing).view_as(x_BI)


@cache
def _turn(length: int) -> tuple[Tensor, Tensor]:
    """Signs of the entries, and the orthogonal symmetric matrix that mixes a block.

    >>> signs, mixing = _turn(24)
    >>> signs.abs().sum().item(), len(mixing), torch.allclose(mixing @ mixing, torch.eye(8), atol=1e-6)
    (24.0, 8, True)
    """
    signs = torch.randint(0, 2, (length,), generator=torch.Generator().manual_seed(length)).float().mul_(2).sub_(1)
    mixing = torch.ones(1, 1)
    while length % (2 * len(mixing)) == 0 and len(mixing) < BLOCK:
        mixing = torch.cat([torch.cat([mixing, mixing], 1), torch.cat([mixing, -mixing], 1)])
    return signs, mixing / len(mixing) ** 0.5
