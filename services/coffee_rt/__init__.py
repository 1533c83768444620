"""coffee-rt: streaming analytics for orders."""

__version__ = "0.1.0"
