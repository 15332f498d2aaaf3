"""Machines one can rent or own: memory, bandwidth, arithmetic, watts and a price, each with its source and date.

A number without a source is not here. Strop's own speed on a GPU has NOT been measured: a forecast for one of these is
the table times the efficiencies below, which are assumptions and are printed as such. Knows no recipe.
"""

from __future__ import annotations

from dataclasses import dataclass

from strop.config import nearest
from strop.plan.rates import Rates
from strop.plan.shape import Shape
from strop.record import UserError

__all__ = ["ASSUMED", "HARDWARE", "Hardware", "named", "rates"]

CHECKED = "2026-11-23"  # when the sources below were read

# Assumptions: what is reached of the table's figures. A factor of two either way is possible.
TRAIN_EFF = 0.35  # of the peak, in products of training and prefill: eager modules, packed rows
HEAD_EFF = 0.5
ATTEND_EFF = 0.15  # masked attention over padded blocks
BANDWIDTH_EFF = 0.7
LAYER_S = 4e-4  # of a token in a layer that is neither reading nor multiplying: launching some 20 kernels from Python
WORD_S = 1e-3  # of drawing, likewise
ASSUMED = (
    f"not measured: {TRAIN_EFF:.0%} of the peak in training, {BANDWIDTH_EFF:.0%} of the bandwidth and "
    f"{1e3 * LAYER_S:g} ms a layer in sampling are assumed"
)
LOW, HIGH = 0.5, 2.0  # the range that is stated of such a forecast's time


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One GPU. Without sparsity; FLOP/s with accumulation in float32."""

    title: str
    memory_gb: float
    gb_per_s: float
    bfloat16_tflops: float
    float32_tflops: float  # the plain kind: Strop multiplies float32 weights exactly on a GPU
    watts: float  # board power, the most it takes
    usd_per_hour: float | None
    source: str
    price_source: str = ""


HARDWARE: dict[str, Hardware] = {
    "a40": Hardware(
        title="NVIDIA A40 48 GB", memory_gb=48.0, gb_per_s=696.0, bfloat16_tflops=149.7, float32_tflops=37.4, watts=300.0,
        usd_per_hour=0.44, source=f"hmc-tech.com/gpu/nvidia-a100-vs-nvidia-a40 and NVIDIA's data sheet as resellers print it, {CHECKED}",
        price_source="$42 for 96 A40-hours, arXiv 2503.16219 (RunPod, March 2025)",
    ),
    "rtx3090": Hardware(
        title="GeForce RTX 3090 24 GB", memory_gb=24.0, gb_per_s=936.0, bfloat16_tflops=71.2, float32_tflops=35.6, watts=350.0,
        usd_per_hour=0.22, source=f"gpu.spicedreamphone.com/en/gpu/a40-pcie-vs-geforce-rtx-3090, ctc.archdevil.net (71.2), {CHECKED}",
        price_source="RunPod from, deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10",
    ),
    "rtx4090": Hardware(
        title="GeForce RTX 4090 24 GB", memory_gb=24.0, gb_per_s=1008.0, bfloat16_tflops=165.2, float32_tflops=82.6, watts=450.0,
        usd_per_hour=0.34, source=f"waredb.com/processor/nvidia-geforce-rtx-4090, wccftech.com (450 W), {CHECKED}",
        price_source="RunPod from, deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10",
    ),
    "l4": Hardware(
        title="NVIDIA L4 24 GB", memory_gb=24.0, gb_per_s=300.0, bfloat16_tflops=121.0, float32_tflops=30.3, watts=72.0,
        usd_per_hour=0.44, source=f"fpsbench.com/compare/gpu/nvidia-l4-vs-nvidia-tesla-m40, grokipedia.com/page/NVIDIA_L4_vs_L40S (242 sparse), {CHECKED}",
        price_source="RunPod from, deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10",
    ),
    "l40s": Hardware(
        title="NVIDIA L40S 48 GB", memory_gb=48.0, gb_per_s=864.0, bfloat16_tflops=362.0, float32_tflops=91.6, watts=350.0,
        usd_per_hour=0.79, source=f"llmbook.apartsin.com section G.1, grokipedia.com/page/NVIDIA_L4_vs_L40S, {CHECKED}",
        price_source="RunPod from, deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10",
    ),
    "a100": Hardware(
        title="NVIDIA A100 SXM 80 GB", memory_gb=80.0, gb_per_s=2039.0, bfloat16_tflops=312.0, float32_tflops=19.5, watts=400.0,
        usd_per_hour=1.39, source=f"glennklockwood.com/garden/processors/A100 after NVIDIA's data sheet, {CHECKED}",
        price_source="RunPod from, deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10",
    ),
    "h100": Hardware(
        title="NVIDIA H100 SXM 80 GB", memory_gb=80.0, gb_per_s=3350.0, bfloat16_tflops=990.0, float32_tflops=66.9, watts=700.0,
        usd_per_hour=2.69, source=f"llmbook.apartsin.com section G.1, hmc-tech.com/gpu/nvidia-h100-vs-nvidia-h200-sxm-vs-nvidia-gb200, {CHECKED}",
        price_source="RunPod Secure Cloud, spheron.network/blog/runpod-h100-pricing-2026, "
        f"{CHECKED}",
    ),
    "h200": Hardware(
        title="NVIDIA H200 SXM 141 GB", memory_gb=141.0, gb_per_s=4800.0, bfloat16_tflops=990.0, float32_tflops=66.9, watts=700.0,
        usd_per_hour=3.59, source=f"llmbook.apartsin.com section G.1, hmc-tech.com/gpu/nvidia-h100-vs-nvidia-h200-sxm-vs-nvidia-gb200, {CHECKED}",
        price_source="RunPod from, deploybase.ai/articles/runpod-gpu-pricing, 2026-03-10",
    ),
}  # fmt: skip


def named(name: str) -> Hardware:
    """Raises UserError for a machine that is not in the table."""
    if name not in HARDWARE:
        raise UserError(f"--on {name}{nearest(name, [*HARDWARE, 'this'])}")
    return HARDWARE[name]


def rates(hardware: Hardware, shape: Shape, *, dtype: str) -> Rates:
    """What the table gives under the assumptions, for weights of this type (float32 or bfloat16)."""
    itemsize = 2 if dtype == "bfloat16" else 4
    peak = 1e12 * (hardware.bfloat16_tflops if dtype == "bfloat16" else hardware.float32_tflops)
    bandwidth = 1e9 * hardware.gb_per_s * BANDWIDTH_EFF

    def product_s(weights: int, rows: int) -> float:
        return max(itemsize * weights / bandwidth, 2 * rows * weights / (peak * TRAIN_EFF))

    decode = tuple(
        (
            rows,
            product_s(shape.layer_weights, rows) + LAYER_S,
            product_s(shape.head_weights, rows) + 6 * 4 * rows * shape.vocab / bandwidth + WORD_S,
        )
        for rows in (1, 16, 64, 256, 1024)
    )
    return Rates(
        train_flops=peak * TRAIN_EFF, attend_flops=peak * ATTEND_EFF, head_flops=peak * HEAD_EFF,
        prefill_flops=peak * TRAIN_EFF, decode=decode, key_s=2 * itemsize * shape.keys / bandwidth,
        optimizer_floats=bandwidth / 28, memory_bytes=bandwidth, disk_bytes=5e8, verdicts=500.0, gemm_flops=peak,
    )  # fmt: skip
