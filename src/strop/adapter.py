"""LoRA adapters: made fresh on a model, or read from a folder in PEFT layout, which holds them and names their base.

Knows that layout and what is refused of it (pickles, adapters that are no LoRA). Does not know how the base is loaded.
Read by `model`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import transformers

from strop import config
from strop.record import UserError

__all__ = ["Saved", "fresh", "read", "saved"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An adapter in a folder."""

    folder: Path
    base: str  # the model it stands on: a folder, or a hub id
    rank: int
    alpha: float


def saved(folder: Path) -> Saved | None:
    """The adapter in this folder; None where there is none. Raises UserError for one that cannot be read."""
    if not (folder / CONFIG).is_file():
        return None
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} names an adapter and holds no {WEIGHTS} (only safetensors are read)")
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if said["peft_type"] != "LORA":
            raise UserError(f"{folder} holds an adapter of the kind {said['peft_type']}; Strop reads LoRA only")
        return Saved(
            folder=folder,
            base=str(said["base_model_name_or_path"]),
            rank=int(said["r"]),
            alpha=float(said["lora_alpha"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} is no description of a LoRA adapter ({error!r})") from error


def fresh(model: transformers.PreTrainedModel, lora: config.Lora) -> peft.PeftModel:
    """A new adapter put into the model's linear layers: as long as nothing was learned it changes no answer."""
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # A is drawn; a resumed run must draw the same
        return peft.get_peft_model(model, settings)  # type: ignore[return-value]


def read(model: transformers.PreTrainedModel, found: Saved) -> peft.PeftModel:
    """The saved adapter put into the model, its base, to be used or trained on.

    Raises UserError for one that changes the head, which Strop reads past its modules.
    """
    adapter = peft.PeftModel.from_pretrained(model, str(found.folder), is_trainable=True)
    if type(model.get_output_embeddings()) is not torch.nn.Linear:
        raise UserError(
            f"{found.folder}: its adapter changes the head, which Strop does not do; merge it into its base"
        )
    return adapter  # type: ignore[return-value]
