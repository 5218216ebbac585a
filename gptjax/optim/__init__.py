"""The optimizer as one optax transformation, and the schedules it follows."""
