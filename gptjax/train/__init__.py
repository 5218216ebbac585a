"""The run: build, restore, loop, callbacks."""
