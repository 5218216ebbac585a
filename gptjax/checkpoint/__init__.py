"""Saved states: written, proved, restored, refused."""
