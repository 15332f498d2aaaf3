"""What a model's config alone says of its cost: layers, widths, parameters, bytes of a cached token.

No weights are read. The formulas are those of a decoder with a gated MLP (Llama, Qwen, Mistral, Gemma), or a plain one
where the config has no `intermediate_size` (GPT-2). Knows no machine and no recipe but the `model` section that names
the folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strop import config
from strop.record import UserError

__all__ = ["DEMO_SHAPE", "Shape", "of_config", "read"]

# Written out in `fused.py`; what else is rotated, normed or clipped in between shows only when a model is loaded.
FUSED_TYPES = ("llama", "qwen2", "mistral")
PLAIN_TYPES = ("gpt_neox", "opt", "gpt2")  # an MLP of two matrices, without a gate
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
BIASED_TYPES = ("qwen2",)  # query, key and value carry a bias


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a decoder. Counts of floats, not of bytes.

    >>> DEMO_SHAPE.parameters, DEMO_SHAPE.lora_parameters(16), DEMO_SHAPE.cached_floats
    (134515008, 4884480, 11520)
    """

    name: str
    kind: str  # "model_type" of the config
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocab: int
    tied: bool
    gated: bool = True
    biased: bool = False
    places: int | None = None  # the longest sequence in tokens; None: no limit
    adapter_rank: int = 0  # of the adapter that the folder itself is

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.kv_heads * self.head_size

    @property
    def gates(self) -> int:
        """Columns of what the MLP reads: gate and up, or one of them."""
        return (2 if self.gated else 1) * self.mlp

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """(in, out) of one layer's multiplications, by what reads one input."""
        return {
            "qkv": (self.hidden, self.queries + 2 * self.keys),
            "out": (self.queries, self.hidden),
            "gate_up": (self.hidden, self.gates),
            "down": (self.mlp, self.hidden),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's multiplications."""
        return sum(num_in * num_out for num_in, num_out in self.products.values())

    @property
    def head_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        biases = self.queries + 2 * self.keys if self.biased else 0
        embeddings = self.head_weights * (1 if self.tied else 2)
        return embeddings + self.layers * (self.layer_weights + biases + 2 * self.hidden) + self.hidden

    def lora_parameters(self, rank: int) -> int:
        """Of adapters on every linear layer but the head, gate and up, query, key and value each alone."""
        q, k, h, m = self.queries, self.keys, self.hidden, self.mlp
        sides = (h + q) + 2 * (h + k) + (q + h) + (2 if self.gated else 1) * (h + m) + (m + h)
        return self.layers * rank * sides

    def trainable(self, rank: int) -> int:
        return self.lora_parameters(rank) if rank else self.parameters

    @property
    def cached_floats(self) -> int:
        """Of one token's keys and values in all layers."""
        return 2 * self.layers * self.keys

    def is_fused(self, *, lora: bool, device: str, dtype: str) -> bool:
        """Whether the layers run as `fused.py` writes them out, and not as modules."""
        return self.kind in FUSED_TYPES and not lora and device == "cpu" and dtype == "float32"


# SmolLM2-135M-Instruct, so that a plan of the demo model fetches nothing; a test holds it to the model's own config.
DEMO_SHAPE = Shape(
    name="smollm2-135m", kind="llama", layers=30, hidden=576, heads=9, kv_heads=3, head_size=64, mlp=1536, vocab=49_152,
    tied=True, places=8192,
)  # fmt: skip


def of_config(found: Any, name: str = "") -> Shape:
    """The shape of a Hugging Face config. Raises UserError for one that is no decoder as above.

    >>> from types import SimpleNamespace
    >>> of_config(SimpleNamespace(hidden_size=8, num_hidden_layers=2, num_attention_heads=4, vocab_size=16)).products["down"]
    (32, 8)
    """
    text = found.get_text_config() if hasattr(found, "get_text_config") else found
    try:
        hidden, heads, layers = text.hidden_size, text.num_attention_heads, text.num_hidden_layers
        vocab = text.vocab_size
    except AttributeError as error:
        raise UserError(f"{name}: its config does not say {str(error).split()[-1]}, so no cost can be told") from None
    kind = str(getattr(text, "model_type", ""))
    if any(getattr(text, key, None) for key in EXPERTS):
        raise UserError(f"{name}: a mixture of experts, whose cost is not modelled")
    mlp = getattr(text, "intermediate_size", None)
    plain = mlp is None or kind in PLAIN_TYPES
    return Shape(
        name=name, kind=kind, layers=layers, hidden=hidden, heads=heads, vocab=vocab,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_size=getattr(text, "head_dim", None) or hidden // heads,
        mlp=mlp or getattr(text, "n_inner", None) or 4 * hidden, gated=not plain,
        tied=bool(getattr(text, "tie_word_embeddings", True)), biased=kind in BIASED_TYPES,
        places=getattr(text, "max_position_embeddings", None),
    )  # fmt: skip


def read(settings: config.Model, say: Callable[[str], None] = lambda _: None) -> Shape:
    """The shape of the model that a recipe names. An adapter's folder has its base's shape, and its own rank.

    Raises UserError as `model.load` does for what it looks at; a hub id is looked up, without its weights.
    """
    if settings.name == DEMO_SHAPE.name:
        return DEMO_SHAPE
    folder = Path(settings.name).expanduser()
    if (said := folder / "adapter_config.json").is_file():
        about = json.loads(said.read_text(encoding="utf-8"))
        base = str(about["base_model_name_or_path"])
        name = DEMO_SHAPE.name if Path(base).name == DEMO_SHAPE.name else base
        return replace(read(settings.model_copy(update={"name": name}), say), adapter_rank=int(about["r"]))
    if (folder / "config.json").is_file():
        from transformers import AutoConfig

        try:
            found = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
        except (ValueError, OSError, KeyError) as error:
            first = str(error).strip().split("\n")[0][:300]
            raise UserError(f"model.name={settings.name}: its config cannot be read: {first}") from error
        return of_config(found, settings.name)
    from strop import model

    return of_config(model.outline(settings, say).hf_config, settings.name)
