"""Formats of other programs: Hugging Face and llama.cpp."""
