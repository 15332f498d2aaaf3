"""Loading: what is taken, what is refused and in which words, and that our attention is the model's own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.convert_slow_tokenizer import bytes_to_unicode

from strop import attention, config, model
from strop.engine import Sampling
from strop.engine.native import NativeEngine
from strop.record import Task, UserError


def load(name, **settings):
    return model.load(config.Model(name=str(name), **settings))


def copy(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"by their folder, such as .*/checkpoints/sft/final"):
        load(f"{tmp_path}:sft")


def test_pickled_weights_are_refused(tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no \*\.safetensors"):
        load(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        load(folder)


def test_damaged_weights_are_one_sentence(tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(UserError, match="cannot be loaded"):
        load(folder)


def test_remote_code_is_refused_unless_asked_for(tiny_model, tmp_path):
    folder = copy(tiny_model, tmp_path)
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UserError, match="trust_remote_code"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_a_device_that_is_not_there(tiny_model):
    with pytest.raises(UserError, match="is no device"):
        load(tiny_model, device="fpga")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA"):
            load(tiny_model, device="cuda")


def test_a_hub_id_loads_from_a_local_snapshot(tiny_model, tmp_path, monkeypatch):
    """The layout of the hub's cache: models--owner--name/{refs/main, snapshots/<commit>/...}."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--owner--name"
    shutil.copytree(tiny_model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = """
from strop import config, model
from strop.record import UserError
assert model.load(config.Model(name="owner/name")).model.config.hidden_size == 64
try:
    model.load(config.Model(name="owner/other"))
except UserError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.startswith("model.name=owner/other cannot be loaded"), done.stderr


SMALL = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": 257, "pad_token_id": 258, "bos_token_id": 256,
}  # fmt: skip
ARCHITECTURES = {
    "qwen2": lambda: transformers.Qwen2Config(**SMALL),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL, head_dim=8),
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "mistral": lambda: transformers.MistralConfig(**SMALL, sliding_window=4),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL,
        head_dim=8,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=259, n_embd=32, n_layer=2, n_head=4, n_positions=256, eos_token_id=257, bos_token_id=256
    ),
}


def build(tiny_model, folder, architecture):
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(architecture).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_other_architectures_generate_as_transformers_does(tiny_model, tmp_path, name):
    policy = load(build(tiny_model, tmp_path / name, ARCHITECTURES[name]()))
    chat = policy.chat(config.Chat())
    task = Task.make(source="test", prompt="Compute 2 + 2.", answer="4", verifier="math")
    engine = NativeEngine(policy, chat, max_batch=4)
    (ours,) = engine.generate([task], num_samples=1, sampling=Sampling(temperature=0.0, max_tokens=12), seed_path=())
    policy.model.set_attn_implementation("eager")
    prompt = torch.from_numpy(chat.encode_prompt(task.prompt)).long()[None]
    theirs = policy.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False,
        eos_token_id=list(chat.stop_ids), pad_token_id=chat.stop_ids[0],
    )  # fmt: skip
    assert ours.token_ids.tolist() == theirs[0].tolist()


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path, architecture):
    """A Llama of random weights as llama.cpp keeps it, in float32; its tokens are bytes and a merge. The model, to compare."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(architecture)
    writer, c = gguf.GGUFWriter(str(path), "llama"), architecture
    for add, value in {
        writer.add_context_length: c.max_position_embeddings, writer.add_embedding_length: c.hidden_size,
        writer.add_block_count: c.num_hidden_layers, writer.add_feed_forward_length: c.intermediate_size,
        writer.add_head_count: c.num_attention_heads, writer.add_head_count_kv: c.num_key_value_heads,
        writer.add_layer_norm_rms_eps: c.rms_norm_eps, writer.add_vocab_size: c.vocab_size, writer.add_tokenizer_model: "gpt2",
        writer.add_token_list: [*bytes_to_unicode().values(), "<s>", "</s>", "<pad>", "ab"], writer.add_token_merges: ["a b"],
        writer.add_bos_token_id: c.bos_token_id, writer.add_eos_token_id: c.eos_token_id,
    }.items():  # fmt: skip
        add(value)
    for name, weight in model.state_dict().items():
        part = name.removesuffix(".weight")
        if match := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", part):
            writer.add_tensor(f"blk.{match[1]}.{GGUF_NAMES[match[2]]}.weight", weight.numpy())
        else:
            writer.add_tensor(f"{GGUF_NAMES[part]}.weight", weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model.state_dict()


def test_a_gguf_file_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("STROP_CACHE", str(tmp_path / "cache"))
    path, said = tmp_path / "tiny.gguf", []
    weights = write_gguf(path, transformers.LlamaConfig(**SMALL | {"vocab_size": 260}))
    settings = config.Model(name=str(path))
    for _ in range(2):
        policy = model.load(settings, said.append)
    assert said == ["converting tiny.gguf to safetensors, float32 ..."]
    found = policy.model.state_dict()
    for name in (
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        "lm_head.weight",
    ):  # heads are turned
        assert torch.equal(found[name], weights[name]), name
    assert policy.tokenizer.decode(policy.tokenizer.encode("cab 2")) == "cab 2"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.name=.*tiny\.gguf cannot be converted: "):
        model.load(settings, said.append)
    assert [folder.name[:5] for folder in (tmp_path / "cache").iterdir()] == ["gguf-"]


def test_attention_that_we_do_not_implement_is_refused(tiny_model, tmp_path):
    capped = transformers.Gemma2Config(**SMALL, head_dim=8, attn_logit_softcapping=1.0)
    with pytest.raises(UserError, match="softcap"):
        load(build(tiny_model, tmp_path / "gemma2", capped))


def test_a_scale_behind_the_head_is_refused(tiny_model, tmp_path):
    granite = transformers.GraniteConfig(**SMALL, logits_scaling=4.0)
    with pytest.raises(UserError, match="differs from its own"):
        load(build(tiny_model, tmp_path / "granite", granite))


def test_a_head_with_a_bias_is_refused(tiny_model, tmp_path):
    with pytest.raises(UserError, match="its head has a bias"):
        load(build(tiny_model, tmp_path / "phi", transformers.PhiConfig(**SMALL)))


def test_weights_that_do_not_fit_are_refused(tiny_model, tmp_path):
    """A missing tensor would be random numbers, and one of another size an error deep inside."""
    folder = build(tiny_model, tmp_path / "llama", ARCHITECTURES["llama"]())
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"not whole: 1 weights are missing, model.layers.1.mlp.up_proj.weight first"):
        load(folder)
    weights["model.layers.1.mlp.up_proj.weight"] = lost[:, :16].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="cannot be loaded"):
        load(folder)


def test_attention_that_differs_is_found_at_load(tiny_model, monkeypatch):
    """The comparison with eager attention can fail: here each query loses its last key."""
    right = attention._block

    def wrong(rows, device):
        block = right(rows, device)
        visible = block.visible_RQK.clone()
        visible[:, :, -1] = False
        visible[:, :, 0] = True
        return replace(block, visible_RQK=visible)

    monkeypatch.setattr(attention, "_block", wrong)
    with pytest.raises(UserError, match="differs from its own"):
        load(tiny_model)


@pytest.mark.parametrize("rank", [0, 4])
def test_saved_weights_are_what_others_read(tiny_model, tmp_path, rank):
    import peft

    policy = load(tiny_model, lora=config.Lora(rank=rank))
    with torch.no_grad():
        for p in policy.trainable().values():
            p.add_(0.01)
    policy.save(tmp_path / "saved")
    if rank:
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "saved"))
    else:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    ids = torch.arange(10)[None]
    policy.model.set_attn_implementation("eager")
    torch.testing.assert_close(policy.model(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


def test_weights_of_another_model_are_refused(tiny_model, tmp_path):
    policy = load(tiny_model)
    build(tiny_model, tmp_path / "gpt2", ARCHITECTURES["gpt2"]())
    with pytest.raises(UserError, match="does not hold this model"):
        policy.load_weights(tmp_path / "gpt2")


def test_chat(tiny_model):
    policy = load(tiny_model)
    chat = policy.chat(config.Chat(system="Be brief.", prefill="<think>\n"))
    text = chat.prompt_text("Compute 2 + 2.")
    assert text.count("Be brief.") == 1
    assert text.endswith("assistant\n<think>\n")
    assert chat.decode(chat.encode_completion("4")) == "4"
    assert chat.encode_completion("4")[-1] in chat.stop_ids
    plain = policy.chat(config.Chat(template="{{ messages[-1].content }} ="))
    assert plain.prompt_text("2 + 2") == "2 + 2 ="
    with pytest.raises(UserError, match="template"):
        policy.chat(config.Chat(template="{{ 1 / 0 ")).prompt_text("x")
