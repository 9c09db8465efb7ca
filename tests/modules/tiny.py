"""Tiny models of real architectures, with random weights."""

from typing import Any

from torch import Tensor

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
VIT = {"model_type": "vit", "num_channels": 1, **VISION}
DEIT = {"model_type": "deit", "num_channels": 1, **VISION, "qkv_bias": True}
TOWER = {"vocab_size": 60, **SMALL, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CLIP = {"model_type": "clip", "vision_config": {**VISION, "num_channels": 1}, "text_config": TOWER}
BERT = {"model_type": "bert", "vocab_size": 60, **SMALL}
ROBERTA = {"model_type": "roberta", "vocab_size": 60, **SMALL}
DISTILBERT = {
    "model_type": "distilbert", "vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32
}  # fmt: skip
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
LLAMA = {"model_type": "llama", "vocab_size": 60, **SMALL, "num_key_value_heads": 1, **SPECIAL}
QWEN = {"model_type": "qwen2", "vocab_size": 60, **SMALL, "num_key_value_heads": 1, **SPECIAL}
GPT2 = {"model_type": "gpt2", "vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, **SPECIAL}


def frozen(module: Any) -> dict[str, Tensor]:
    """Copies of the parameters that are not trained."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
