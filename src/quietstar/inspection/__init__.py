"""What a thinking model thinks, position by position, and whether it matters."""

from quietstar.inspection.texts import inspect

__all__ = ["inspect"]
