"""What ships inside the package: the small pre-trained ViT of the embedded default, and the command that made it."""

from importlib.resources import files
from pathlib import Path

__all__ = ["embedded_model_path"]


def embedded_model_path() -> Path:
    """Returns the folder of the embedded ViT, in Hugging Face's layout: ``AutoModel.from_pretrained`` takes it."""
    return Path(str(files(__package__))) / "vit_glyphs"
