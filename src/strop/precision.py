"""How float32 matrices are multiplied: exactly, or rounded to bfloat16 first where the processor has that in hardware.

Knows torch's switch and oneDNN's packed layout, and nothing of models (`fused.py` also keeps what flows between rounded products in bfloat16). Training, the sampling for it and the dev split's watching may round
(`model.matmul` in the recipe); held-out evaluation and attention never do. A processor without bfloat16 multiplies in float32 whatever is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Matmul", "has_bfloat16", "is_exact", "multiply_in", "pack", "times_packed"]

Matmul = Literal["float32", "bfloat16"]
PACKED_ROWS = 128  # rows the layout is made for; others are multiplied as well
_SWITCH = {"float32": "highest", "bfloat16": "medium"}


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32, and torch makes use of it (seen on x86 with AMX only).

    AVX-512's own bfloat16 instructions are no such hardware: with them alone products take as long as in float32 or half
    as long again (LAB.md). A fixed rule and no measurement, so that a resumed run multiplies as it began.
    """
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def is_exact() -> bool:
    return torch.get_float32_matmul_precision() == "highest"


@contextmanager
def multiply_in(kind: Matmul) -> Iterator[None]:
    """For a while float32 matrices are multiplied in this way; backward passes inside it as well."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(_SWITCH[kind])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def pack(matrix: Tensor) -> Tensor:
    """A copy of [out, in] in the layout in which oneDNN multiplies it fastest; only `times_packed` can read it.

    A plain matrix is brought into that layout in every product, which for 64 rows takes as long as the product. torch
    has no public name for this (its compiler uses it for frozen weights); where it is missing the matrix itself comes back.
    """
    ops = torch.ops.mkldnn
    if not hasattr(ops, "_reorder_linear_weight") or not ops._is_mkldnn_bf16_supported():
        return matrix
    return ops._reorder_linear_weight(matrix, PACKED_ROWS)


def times_packed(x: Tensor, matrix: Tensor, *, silu: bool = False, by: Tensor | None = None) -> Tensor:
    """x @ matrix.T, then silu of it or times `by`; from a packed matrix rounded once, at the end."""
    assert not (silu and by is not None), "one of the two fits into a product"
    if not matrix.is_mkldnn:
        out = x @ matrix.T
        out = torch.nn.functional.silu(out) if silu else out
        return out if by is None else out.mul_(by)
    product = torch.ops.mkldnn._linear_pointwise
    if by is not None:
        return product.binary(x, by, matrix, None, "mul")
    return product(x, matrix, None, "swish" if silu else "none", [], "")
