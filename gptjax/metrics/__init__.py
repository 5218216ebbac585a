"""What the numbers mean and where they are written."""

from gptjax.metrics.aggregate import average, scaled
from gptjax.metrics.throughput import Clock, Window
from gptjax.metrics.writers import MetricsWriter

__all__ = ["Clock", "MetricsWriter", "Window", "average", "scaled"]
