"""How float32 matrices are multiplied: exactly, or rounded to bfloat16 first where the processor has that in hardware.

Knows torch's switch and nothing of models (`fused.py` also keeps what flows between rounded products in bfloat16). Training, the sampling for it and the dev split's watching may round
(`model.matmul` in the recipe); held-out evaluation and attention never do. A processor without bfloat16 multiplies in float32 whatever is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

__all__ = ["Matmul", "has_bfloat16", "is_exact", "multiply_in"]

Matmul = Literal["float32", "bfloat16"]
_SWITCH = {"float32": "highest", "bfloat16": "medium"}


def has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, and torch makes use of it (seen on x86 only)."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


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
