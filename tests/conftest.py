"""Tiny real objects that every test may use: a random two-layer Llama with a byte tokenizer, and the demo model.

Torch is imported inside the fixtures, so that tests without a model start at once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "demo: uses the demo model; slow as well until it has been fetched once")


@pytest.hookimpl(tryfirst=True)  # before -m deselects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    demo = [item for item in items if "demo_model" in getattr(item, "fixturenames", ())]
    if not demo:
        return
    from strop import model

    cached = (model.cache_dir() / model.DEMO / "complete").exists()
    for item in demo:
        item.add_marker("demo")
        if not cached:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama (2 layers, 64 wide, 4 heads, 2 of them for keys) that knows bytes and ChatML."""
    folder = tmp_path_factory.mktemp("tiny_model")
    write_tiny_model(folder)
    return folder


def write_tiny_model(folder: Path) -> None:
    import torch
    import transformers

    tokenizer = byte_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=len(tokenizer),  # no id that the tokenizer cannot decode
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                initializer_range=0.2,  # peaked enough that greedy choices are no ties
                tie_word_embeddings=True,
                bos_token_id=tokenizer.convert_tokens_to_ids("<|im_start|>"),
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_tokenizer():
    """One token a byte, and three special ones; reversible on every text."""
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|pad|>")])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """Folder of SmolLM2-135M-Instruct; fetched the first time, so tests that ask for it are slow until it is there."""
    from strop import model

    return model.demo_folder(print)
