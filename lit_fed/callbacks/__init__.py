"""What acts on a federation while it runs."""

from lit_fed.callbacks.base import Callback
from lit_fed.callbacks.early_stopping import EarlyStopping
from lit_fed.callbacks.progress import Progress

__all__ = ["Callback", "EarlyStopping", "Progress"]
