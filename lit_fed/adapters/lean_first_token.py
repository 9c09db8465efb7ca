"""Vision transformers whose head reads the first token: the last block runs for that one alone.

All that the head of ``ViTForImageClassification`` reads of the last block is the class token. Of the other tokens no
more than keys and values is used, forward and backward. So queries, what attention gives, and the MLP are computed for
one token in place of 65 or 197, which makes the last block five sixths cheaper.

Assumption: a matrix of other shape may be rounded otherwise; beyond that, logits and gradients are the same.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lit_fed.adapters.blocks import BlockStack
from lit_fed.adapters.structure import is_pretrained_model

__all__ = ["lean_first_token"]

# Heads whose forward reads `last_hidden_state[:, 0]`, and blocks whose forward is, line by line, the one below.
_HEADS = {
    "transformers.models.vit.modeling_vit.ViTForImageClassification": "ViTLayer",
    "transformers.models.deit.modeling_deit.DeiTForImageClassification": "DeiTLayer",
}
_MORE = ("output_hidden_states", "output_attentions")
_PARTS = (
    {"attention", "layernorm_before", "layernorm_after", "mlp", "dropout"},
    {"q_proj", "k_proj", "v_proj", "o_proj"},
)


def lean_first_token(module: nn.Module, blocks: BlockStack | None) -> Callable[[], None]:
    """Run the last block of such classifiers so, whichever block is the last while only some are selected.

    It runs in full where more is asked for than logits, while dropout is on, and where hooks look at it.

    Args:
        module: The module.
        blocks: Its blocks, if it has any.

    Returns:
        What puts everything back.
    """
    found = [m for m in module.modules() if is_pretrained_model(m) and _name(m) in _HEADS]
    if blocks is None or len(found) != 1 or type(blocks.blocks[0]).__name__ != _HEADS[_name(found[0])]:
        return lambda: None
    lean = _FirstToken(found[0], blocks)
    changed = [lean.model, *blocks.blocks]
    lean.model.__dict__["forward"] = partial(lean.logits, lean.model.forward)
    for block in blocks.blocks:
        block.__dict__["forward"] = partial(lean.block, block, block.forward)

    def undo() -> None:
        for one in changed:
            del one.__dict__["forward"]

    return undo


class _FirstToken:
    """A classifier and its blocks."""

    def __init__(self, model: Any, blocks: BlockStack) -> None:
        self.model, self.blocks = model, blocks

    def logits(self, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The classifier's forward."""
        more = any(kwargs.get(name) or getattr(self.model.config, name, False) for name in _MORE)
        backbone = self.model.base_model
        more = more or any(m._forward_hooks for m in (backbone, *backbone.children()))
        before, self.blocks.first_token_alone = self.blocks.first_token_alone, not more
        try:
            return plain(*args, **kwargs)
        finally:
            self.blocks.first_token_alone = before

    def block(
        self, block: Any, plain: Callable[..., Tensor], hidden: Tensor, mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """A block's forward: (B, T, D) -> (B, T, D), or (B, 1, D) of the last one."""
        alone = self.blocks.first_token_alone and block is self.blocks.last
        if not alone or mask is not None or not _is_plain(block):
            return plain(hidden, mask, **kwargs)
        return _first_token(block, hidden, kwargs)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"


def _is_plain(block: Any) -> bool:
    """Whether a block draws nothing at random, is as it is known here, and nobody looks at it."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = block.attention
    parts = block._modules.keys(), attention._modules.keys()
    drops = block.training and getattr(attention, "attention_dropout", 0.0)
    drops = drops or any(isinstance(m, _DropoutNd) and m.training and m.p for m in block.modules())  # also of LoRA
    watched = block._forward_hooks or attention._forward_hooks or attention._forward_pre_hooks
    known = attention.config._attn_implementation in ALL_ATTENTION_FUNCTIONS  # "eager" is not
    return parts == _PARTS and known and not watched and not drops


def _first_token(block: Any, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """What a block makes of the first of its tokens: (B, T, D) -> (B, 1, D)."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention, first = block.attention, hidden[:, :1]
    seen = block.layernorm_before(hidden)

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], -1, attention.head_dim).transpose(1, 2)

    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    attended, _ = attend(
        attention, heads(attention.q_proj(seen[:, :1])), heads(attention.k_proj(seen)), heads(attention.v_proj(seen)),
        None, dropout=0.0, scaling=attention.scaling, **kwargs,
    )  # fmt: skip
    first = first + attention.o_proj(attended.reshape(len(hidden), 1, -1))
    result: Tensor = first + block.mlp(block.layernorm_after(first))
    return result
