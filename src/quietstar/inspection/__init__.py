"""What a thinking model thinks, position by position, and whether it matters."""
