"""A trained model, to sample from and to score with."""
