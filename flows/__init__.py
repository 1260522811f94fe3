"""Wiring: the recipe, the DAG, presets, commands."""
