"""A scripted expert that sees the simulator's whole state: it records demonstrations where none can be downloaded.

`scene` asks the simulator where things are, `grasp` chooses where to take hold by inverse kinematics on a copy of the
state (`sim.kinematics`), `controller` moves there in phases, `attempt` runs one episode, adds noise and records.

It knows one skill, which all ten libero_spatial tasks need: take the bowl by its rim and set it down on the plate.
"""

from pipeline.libero.expert.attempt import Attempt, Noise, attempt, can_solve
from pipeline.libero.expert.controller import Expert, Move
from pipeline.libero.expert.scene import Scene

__all__ = ["Attempt", "Expert", "Move", "Noise", "Scene", "attempt", "can_solve"]
