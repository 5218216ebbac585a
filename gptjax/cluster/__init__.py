"""Several processes of one run: which of them this is, who has arrived, how they end."""

from gptjax.cluster.join import describe_devices, joined
from gptjax.cluster.place import Place, find_place

__all__ = ["Place", "describe_devices", "find_place", "joined"]
