"""Run configurations: `base.py` declares every key, the other files change some of them."""
