"""An auxiliary loss: where the hand will be at its next two keyframes.

A keyframe is where the gripper closes or opens, or the episode ends (after James and Davison, arXiv 2105.14829, without
their stops). The next actions tell in which direction things are, and hardly how far, so a chunk of them teaches fusion
little of where things are; this does, in every row. Nothing of it is needed to act: the bundle leaves it out.
"""

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.policy.normaliser import Standardiser

PREFIX = "keyframes."
PLACES = 6  # x, y, z of the hand at two keyframes, metres


class Keyframes(nn.Module):
    """One linear layer from the condition to the standardised places, and its squared error, weighted."""

    def __init__(self, width: int, weight: float) -> None:
        super().__init__()
        self.standardise = Standardiser(PLACES)
        self.predict = nn.Linear(width, PLACES)
        self._weight = weight

    def loss(self, condition: Float[Tensor, "B W"], places: Float[Tensor, "B 6"]) -> Float[Tensor, " B"]:
        """Return each row's share of the loss."""
        error = self.predict(condition).float() - self.standardise(places)
        return self._weight * error.square().mean(1)
