"""What every program needs: the workdir, its lock, signals, progress, formatting."""
