"""The federation loop over Lightning Fabric."""

from lit_fed.engine.federation import Federation
from lit_fed.engine.result import Result

__all__ = ["Federation", "Result"]
