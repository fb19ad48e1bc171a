"""Adapters of foreign checkpoint formats: one file a format, two pure functions each."""
