"""What an action head is: two methods. Those there are: flow, diffusion, regression (l1, l2, cvae), tokens."""

from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """Actions from a condition. All randomness is handed in: the same noise gives the same loss and the same actions.

    Actions are (B, H, A), standardised or as the environment has them, in [-1, 1] (policy.standardise_actions).
    """

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's loss.

        Args:
            actions: as demonstrated.
            condition: what fusion made of the observation and the instruction.
            noise: from N(0, I).
            u: from U(0, 1), for a flow's time, a diffusion's level...
        """
        raise NotImplementedError

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return actions.

        Args:
            noise: from N(0, I).
            steps: from noise to action, for heads that take steps.
        """
        raise NotImplementedError
