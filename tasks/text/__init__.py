"""Pure functions over text, importable by any engine's workers."""
