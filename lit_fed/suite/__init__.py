"""Many runs: started side by side, and compared."""

from lit_fed.suite.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
