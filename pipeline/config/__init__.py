"""Settings: strict typed load of params.yaml, and its composition from configs/."""

from pipeline.config.load import from_dict, load
from pipeline.config.params import Params

__all__ = ["Params", "from_dict", "load"]
