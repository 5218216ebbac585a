"""Loads a trained model, samples from it and scores text with it."""
