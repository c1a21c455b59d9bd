"""Rectified flow (Liu, Gong, Liu: "Flow Straight and Fast", ICLR 2023).

Time t=0 is noise, t=1 is data. The path from noise x_0 ~ N(0, I) to data x_1 is straight, x_t = t x_1 + (1 - t) x_0,
and the network v(x_t, t, c) learns its velocity x_1 - x_0. Sampling integrates dx = v dt from 0 to 1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.policy.head import Head
from pipeline.policy.velocity import at_times

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def interpolate(
    x_0: Float[Tensor, "B *x"], x_1: Float[Tensor, "B *x"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B *x"]:
    """Return x_t = t x_1 + (1 - t) x_0, one t in [0, 1] per row."""
    t = t.reshape(-1, *(1,) * (x_1.dim() - 1))
    return t * x_1 + (1 - t) * x_0


def integrate(velocity: Velocity, x_0: Float[Tensor, "B *x"], condition: Tensor, steps: int) -> Float[Tensor, "B *x"]:
    """Integrate dx/dt = velocity(x, t, condition) from t=0 to t=1 in `steps` equal Euler steps.

    That is exact for a straight flow, whatever the number of steps: at t the velocity towards a single x_1 is
    (x_1 - x_t) / (1 - t), and the last step, from t = 1 - dt, lands on x_1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; integration needs at least one")
    x_t = x_0
    at = at_times(velocity, [k / steps for k in range(steps)], condition)
    for k in range(steps):
        x_t = x_t + at(x_t, k / steps) / steps
    return x_t


def straightness(
    velocity: Velocity, x_0: Float[Tensor, "B *x"], condition: Tensor, steps: int = 50
) -> Float[Tensor, " B"]:
    """Return how far each path is from straight: the mean over t of |x_1 - x_0 - v(x_t, t)|^2 per component.

    It is S(Z) of the paper's section 2.2, by `steps` Euler steps; 0 where one step gives what many give.
    """
    x_t, slopes = x_0, []
    for k in range(steps):
        t = torch.full((x_0.shape[0],), k / steps, device=x_0.device, dtype=x_0.dtype)
        slopes.append(velocity(x_t, t, condition))
        x_t = x_t + slopes[-1] / steps
    return torch.stack([((x_t - x_0) - slope).square().flatten(1).mean(1) for slope in slopes]).mean(0)


class RectifiedFlow(Head):
    """The action head: a velocity network, its loss and its sampler. Actions are (B, H, A), in the head's units."""

    def __init__(self, velocity: nn.Module) -> None:
        super().__init__()
        self.velocity = velocity

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's mean squared velocity error. The caller draws noise ~ N(0, I) and t = u ~ U(0, 1)."""
        x_t = interpolate(noise, actions, u)
        error = self.velocity(x_t, u, condition) - (actions - noise)
        return error.square().mean(dim=(1, 2))

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return actions: `noise` carried along the flow in `steps` steps."""
        return integrate(self.velocity, noise, condition, steps)

    def straightness(self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"]) -> Float[Tensor, " B"]:
        """Return how far from straight the paths of `noise` are: 0 where one step gives what many give."""
        return straightness(self.velocity, noise, condition)
