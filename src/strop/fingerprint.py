"""What an evaluation was made of: two results are of the same model, problems, prompt and sampling where these are equal.

Knows what to hash and how; judges nothing (`compare` does). Holds no path and no host name: it goes into reports. Read
by `evaluate`, by `holder`, and by curation, whose answers are kept for the weights that gave them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open

import strop
from strop import config
from strop.chat import Chat
from strop.config import EvaluateStage
from strop.engine import Engine, Served
from strop.machine import commit, cpu_name, version
from strop.model import Outline, Policy
from strop.tasks.benchmarks import content
from strop.tools import Tools

__all__ = ["chat_hash", "folder_hash", "generation_hash", "model_hash", "of", "sampling", "served", "weights"]

# Libraries that decide what is sampled, and whether it is right.
LIBRARIES = ("torch", "transformers", "math-verify", "sympy")
# What a model's config says of where it came from and how it is held: it answers alike whatever they are.
NO_EFFECT = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}


def of(stage: EvaluateStage, tools: Tools) -> dict[str, Any]:
    """The fingerprint of one evaluation by the policy as it is now.

    `model`, `generation`, `chat` and each set of `tasks` are 16 hex digits; `engine`, `sampling`, `versions` and `hardware`
    are in words. Where a server answers, `served_as` is what it calls its model, and `model` and `generation` are None
    unless Strop started it from a folder.
    """
    policy, about = tools.policy, tools.engine.about
    where = about if tools.chat is not None else "a server, in its own chat template"  # `about` has its URL
    return {
        **weights(policy, tools.chat, tools.engine),
        "chat": chat_hash(tools.recipe.chat, tools.chat.template if tools.chat is not None else about),
        "engine": where,
        "tasks": {name: content(tools.splits[name].heldout) for name in stage.tasks},
        "sampling": sampling(stage),
        "versions": {
            "strop": strop.__version__, "commit": commit(), "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "hardware": _hardware(policy) if policy is not None else where,
    }  # fmt: skip


def weights(policy: Policy | None, chat: Chat | None, engine: Engine) -> dict[str, str | None]:
    """What is known of the weights that answer: `model`, `generation`, and `served_as` where a server has them."""
    if policy is not None:
        assert chat is not None, "whoever has the weights makes the prompts"
        generation = generation_hash(policy.model.config, chat.stop_ids)
        return {"model": model_hash(policy), "generation": generation}
    there = engine.served
    assert there is not None, "a server's model has a name"
    return {"model": there.weights, "generation": there.generation, "served_as": _without_folder(there.name)}


def _without_folder(name: str) -> str:
    """
    >>> _without_folder("Qwen/Qwen3-0.6B"), _without_folder("qwen3:0.6b"), _without_folder("/home/me/models/qwen3/")
    ('Qwen/Qwen3-0.6B', 'qwen3:0.6b', 'qwen3')
    """
    is_path = name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1 or Path(name).is_dir()
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] if is_path else name


def served(settings: config.Model, outline: Outline, chat: Chat) -> Served:
    """What is known of a model that a server is started with: all, where its weights lie in a folder."""
    generation = generation_hash(outline.hf_config, chat.stop_ids)
    return Served(name=settings.name, weights=folder_hash(outline, settings.dtype), generation=generation)


def sampling(stage: EvaluateStage) -> dict[str, Any]:
    """How the answers were drawn; what has no effect without samples is left out."""
    drawn = {"seeds": stage.seeds, "temperature": stage.temperature, "top_p": stage.top_p} if stage.samples else {}
    return {"greedy": stage.greedy, "samples": stage.samples, **drawn, "max_tokens": stage.max_tokens}


def model_hash(policy: Policy) -> str:
    """Over the bytes of every weight and saved buffer as they act, in the order of their names.

    The same wherever it was loaded from. Buffers that are not saved follow from the config: `generation_hash` has that.
    An adapter counts with its scale, and one that has learned nothing is none; merged into its base it is another model,
    whose weights are rounded.
    """
    return _digest(sorted(_as_they_act(policy.model).items()))


def folder_hash(outline: Outline, dtype: str) -> str | None:
    """`model_hash` of what `model.load` makes of a folder, one tensor in memory at a time; None where that is not certain.

    Certain it is where the files hold exactly the tensors, by name and shape, that the model's class has (a tied head is
    none of them), and no code but the library's decides what becomes of them.
    """
    folder, found = Path(outline.source), outline.hf_config
    if not folder.is_dir() or getattr(found, "auto_map", None):
        return None
    try:
        with torch.device("meta"):
            empty = transformers.AutoModelForCausalLM.from_config(found, dtype=getattr(torch, dtype))
        wanted = _tensors(empty)
        if dtype != "float32" and any(getattr(empty, f"_keep_in_fp32_modules{kind}", None) for kind in ("", "_strict")):
            return None
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(f, "pt")) for f in sorted(folder.glob("*.safetensors"))]
            held = [(name, file) for file in files for name in file.keys()]  # noqa: SIM118 (no dict)
            if sorted(name for name, _ in held) != sorted(wanted):
                return None
            if any(tuple(file.get_slice(name).get_shape()) != tuple(wanted[name].shape) for name, file in held):
                return None
            ordered = sorted(held, key=lambda one: one[0])
            return _digest((name, file.get_tensor(name).to(wanted[name].dtype)) for name, file in ordered)
    except (OSError, ValueError, SafetensorError):  # whoever loads it says what is wrong
        return None


def _tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint of it holds, a tied weight under its first name alone."""
    saved = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: b for name, b in model.named_buffers() if name in saved}


def _as_they_act(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """`_tensors` under the names of the model without adapters, and beside them what adapters add."""
    found, idle = _tensors(model), tuple[str, ...]()
    layers: list[tuple[str, Any]] = [(place, m) for place, m in model.named_modules() if isinstance(m, LoraLayer)]
    for place, layer in layers:
        for name, scale in layer.scaling.items():
            if name in layer.lora_B and not layer.lora_B[name].weight.any():
                idle += (f"{place}.lora_A.{name}.", f"{place}.lora_B.{name}.")
            else:
                found[f"{place}.scale.{name}"] = torch.tensor(scale, dtype=torch.float64)
    return {key.replace(".base_layer.", "."): tensor for key, tensor in found.items() if not key.startswith(idle)}


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def generation_hash(found: transformers.PretrainedConfig, stop_ids: Sequence[int]) -> str:
    """Over what turns weights into answers beside the code: the model's config (rope, eps ...) and what ends an answer."""
    said = json.loads(
        json.dumps(found.to_dict(), default=str),
        object_hook=lambda part: {key: value for key, value in part.items() if key not in NO_EFFECT},
    )
    return hashlib.sha256(json.dumps([said, sorted(stop_ids)], sort_keys=True).encode()).hexdigest()[:16]


def chat_hash(settings: config.Chat, template: str | None) -> str:
    """Over what surrounds every problem: template (or whose it is), system prompt, prefill."""
    parts = [template, settings.system, settings.prefill]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _hardware(policy: Policy) -> str:
    """The processor or GPU that answered, and the numbers it computed with."""
    device = policy.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{name}, {str(policy.model.dtype).removeprefix('torch.')}"
