"""What an action head is: two methods. `settings.HeadName` names those there are."""

from jaxtyping import Float
from torch import Tensor, nn


class Head(nn.Module):
    """Actions from a condition. All randomness is handed in: the same noise gives the same loss and the same actions.

    Actions are (B, H, A), standardised by default, or in [-1, 1]: a head that needs the
    bounds asks for policy.standardise_actions: false (add it to `_policy` in pipeline/config/checks.py). The last
    component, the gripper's, takes two values only. Under train_flow.precision bf16 layers give bfloat16.
    """

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's loss, a mean over its components: learning rate and clipping expect it to be of order 1.

        It may be negative, as a likelihood's is; the report's curves, on a logarithmic scale, leave such points out.

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
            noise: from N(0, I). For a choice, the normal's cumulative function makes U(0, 1) of a number of it, which
                is then used up: a head that needs it as noise, too, has to rescale what the choice has left of it.
            steps: from noise to action, for heads that take steps.
        """
        raise NotImplementedError
