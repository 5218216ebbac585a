"""What the numbers mean and where they are written."""
