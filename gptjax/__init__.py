"""Trains, evaluates and samples a GPT; `main.py` is where to start reading."""
