"""Settings: strict typed load of params.yaml, and its composition from configs/."""

from pipeline.config.load import from_dict, load
from pipeline.config.params import (
    CONDITIONS,
    PLAIN,
    Camera,
    Compute,
    Data,
    Demos,
    Embed,
    EncoderParams,
    EvalLibero,
    GridParams,
    Params,
    PolicyParams,
    Proprio,
    Sim,
    Tls,
    TrainFlow,
    TuneEncoder,
)

__all__ = [
    "CONDITIONS",
    "PLAIN",
    "Camera",
    "Compute",
    "Data",
    "Demos",
    "Embed",
    "EncoderParams",
    "EvalLibero",
    "GridParams",
    "Params",
    "PolicyParams",
    "Proprio",
    "Sim",
    "Tls",
    "TrainFlow",
    "TuneEncoder",
    "from_dict",
    "load",
]
