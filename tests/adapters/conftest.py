"""Ten architectures, tiny, from their configurations, and their classifiers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

IMAGES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
TOKENS = {"vocab_size": 31, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """These models are too small for more."""


@dataclass(frozen=True)
class Arch:
    """One architecture."""

    name: str
    make: Callable[[], nn.Module]
    """A fresh model, its weights always the same."""
    num_blocks: int
    targets: tuple[str, ...]
    num_targets: int
    """Layers with LoRA in a block."""
    task: str | None = None
    heads: tuple[str, ...] | None = None
    """What `modules_to_save` is to name; with a task PEFT adds it."""
    images: bool = False

    def inputs(self) -> dict[str, Tensor]:
        """A batch of 3; the tokens partly padded."""
        random = torch.Generator().manual_seed(1)
        if self.images:
            return {"pixel_values": torch.randn(3, 3, 8, 8, generator=random)}
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[0, 5:] = 0
        tokens = torch.randint(1, 31, (3, 7), generator=random)
        return {"input_ids": torch.where(mask.bool(), tokens, 0), "attention_mask": mask}

    def logits(self, model: nn.Module) -> Tensor:
        """What the model says of the batch."""
        with torch.no_grad():
            output = model(**self.inputs())
        return output.image_embeds if hasattr(output, "image_embeds") else output.logits

    def lora(self, **changes: Any) -> Any:
        """Settings of LoRA for it."""
        from peft import LoraConfig

        return LoraConfig(
            **{"r": 2, "lora_alpha": 4, "target_modules": list(self.targets), "task_type": self.task}
            | {"modules_to_save": list(self.heads) if self.heads else None}
            | changes
        )


def _vision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers as hf

        return {
            "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGES, num_hidden_layers=4, num_labels=5)),
            "deit": lambda: hf.DeiTForImageClassification(hf.DeiTConfig(**IMAGES, num_hidden_layers=3, num_labels=5)),
            "clip": lambda: hf.CLIPVisionModelWithProjection(
                hf.CLIPVisionConfig(**IMAGES, num_hidden_layers=3, projection_dim=6)
            ),
            "clip classifier": lambda: hf.CLIPForImageClassification(
                hf.CLIPConfig(vision_config={**IMAGES, "num_hidden_layers": 4}, text_config=TOKENS, num_labels=5)
            ),
        }[name]()

    return make


def _text(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers as hf

        # two kinds of attention, so that a block's kind must move with it
        kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        sliding = {"use_sliding_window": True, "sliding_window": 2, "layer_types": kinds, "num_key_value_heads": 1}
        distil = {"vocab_size": 31, "dim": 16, "n_heads": 2, "hidden_dim": 24, "n_layers": 3, "num_labels": 5}
        gpt = {"vocab_size": 31, "n_embd": 16, "n_head": 2, "n_layer": 4, "n_positions": 16}
        return {
            "bert": lambda: hf.BertForSequenceClassification(
                hf.BertConfig(**TOKENS, num_hidden_layers=4, num_labels=5, max_position_embeddings=16)
            ),
            "distilbert": lambda: hf.DistilBertForSequenceClassification(hf.DistilBertConfig(**distil)),
            "roberta": lambda: hf.RobertaForSequenceClassification(
                hf.RobertaConfig(**TOKENS, num_hidden_layers=3, num_labels=5, max_position_embeddings=16)
            ),
            "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**gpt, bos_token_id=1, eos_token_id=1)),
            "llama": lambda: hf.LlamaForCausalLM(
                hf.LlamaConfig(**TOKENS, num_hidden_layers=4, num_key_value_heads=1, max_position_embeddings=16)
            ),
            "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**TOKENS, num_hidden_layers=4, **sliding)),
            "gpt2 classifier": lambda: hf.GPT2ForSequenceClassification(
                hf.GPT2Config(**gpt, bos_token_id=1, eos_token_id=1, pad_token_id=0, num_labels=5)
            ),
            "llama classifier": lambda: hf.LlamaForSequenceClassification(
                hf.LlamaConfig(
                    **TOKENS, num_hidden_layers=4, num_key_value_heads=1, max_position_embeddings=16, num_labels=5
                )
            ),
            "qwen2 classifier": lambda: hf.Qwen2ForSequenceClassification(
                hf.Qwen2Config(**TOKENS, num_hidden_layers=4, num_labels=5, **sliding)
            ),
            "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**TOKENS, num_hidden_layers=4, head_dim=8, **sliding)),
        }[name]()

    return make


QUERY_VALUE = ("query", "value")
PROJECTIONS = ("q_proj", "v_proj")
ARCHS = (
    Arch("vit", _vision("vit"), 4, PROJECTIONS, 2, heads=("classifier",), images=True),
    Arch("deit", _vision("deit"), 3, PROJECTIONS, 2, heads=("classifier",), images=True),
    Arch("clip", _vision("clip"), 3, PROJECTIONS, 2, heads=("visual_projection",), images=True),
    Arch("bert", _text("bert"), 4, QUERY_VALUE, 2, task="SEQ_CLS"),
    Arch("distilbert", _text("distilbert"), 3, ("q_lin", "v_lin"), 2, task="SEQ_CLS"),
    Arch("roberta", _text("roberta"), 3, QUERY_VALUE, 2, task="SEQ_CLS"),
    Arch("gpt2", _text("gpt2"), 4, ("c_attn", "c_fc"), 2, task="CAUSAL_LM"),
    Arch("llama", _text("llama"), 4, PROJECTIONS, 2, task="CAUSAL_LM"),
    Arch("qwen2", _text("qwen2"), 4, PROJECTIONS, 2, task="CAUSAL_LM"),
    Arch("qwen3", _text("qwen3"), 4, PROJECTIONS, 2, task="CAUSAL_LM"),
)
CLASSIFIERS = (
    *(arch for arch in ARCHS if arch.name in ("vit", "bert", "distilbert", "roberta")),
    Arch("clip classifier", _vision("clip classifier"), 4, PROJECTIONS, 2, heads=("classifier",), images=True),
    Arch("gpt2 classifier", _text("gpt2 classifier"), 4, ("c_attn", "c_fc"), 2, task="SEQ_CLS"),
    Arch("llama classifier", _text("llama classifier"), 4, PROJECTIONS, 2, task="SEQ_CLS"),
    Arch("qwen2 classifier", _text("qwen2 classifier"), 4, PROJECTIONS, 2, task="SEQ_CLS"),
)


def _seeded(arch: Arch) -> Arch:
    """The same architecture, with weights from a seed and large enough for every block to matter."""
    from dataclasses import replace

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = arch.make()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return replace(arch, make=make)


@pytest.fixture(params=ARCHS, ids=lambda arch: arch.name)
def arch(request: pytest.FixtureRequest) -> Arch:
    return _seeded(request.param)


@pytest.fixture
def arch_named() -> Callable[[str], Arch]:
    return lambda name: _seeded(next(arch for arch in (*ARCHS, *CLASSIFIERS) if arch.name == name))


@pytest.fixture(params=CLASSIFIERS, ids=lambda arch: arch.name)
def classifier(request: pytest.FixtureRequest) -> Arch:
    return _seeded(request.param)


class Net(nn.Module):
    """A plain network with blocks, batch normalisation and a declared head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.fc = nn.Linear(6, 2)

    def head_module(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.fc(x)


@pytest.fixture
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()
