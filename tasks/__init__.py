"""Stages, the store and tracking: one file a stage."""
