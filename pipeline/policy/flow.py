"""Rectified flow (Liu, Gong, Liu: "Flow Straight and Fast", ICLR 2023).

Time t=0 is noise, t=1 is data. The path from noise x_0 ~ N(0, I) to data x_1 is straight, x_t = t x_1 + (1 - t) x_0,
and the network v(x_t, t, c) learns its velocity x_1 - x_0. Sampling integrates dx = v dt from 0 to 1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def interpolate(
    x_0: Float[Tensor, "B *x"], x_1: Float[Tensor, "B *x"], t: Float[Tensor, " B"]
) -> Float[Tensor, "B *x"]:
    """Return x_t = t x_1 + (1 - t) x_0, one t in [0, 1] per row."""
    t = t.reshape(-1, *(1,) * (x_1.dim() - 1))
    return t * x_1 + (1 - t) * x_0


def euler(velocity: Velocity, x_0: Float[Tensor, "B *x"], condition: Tensor, steps: int) -> Float[Tensor, "B *x"]:
    """Integrate dx/dt = velocity(x, t, condition) from t=0 to t=1 in `steps` equal Euler steps.

    Exact for a straight flow, whatever the number of steps: at t the velocity towards a single x_1 is
    (x_1 - x_t) / (1 - t), and the last step, from t = 1 - dt, lands on x_1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; Euler needs at least one")
    x_t = x_0
    for k in range(steps):
        t = torch.full((x_0.shape[0],), k / steps, device=x_0.device, dtype=x_0.dtype)
        x_t = x_t + velocity(x_t, t, condition) / steps
    return x_t


class RectifiedFlow(nn.Module):
    """The action head: a velocity network, its loss and its sampler. Actions are standardised, (B, H, A)."""

    def __init__(self, velocity: nn.Module, horizon: int, action_dim: int) -> None:
        super().__init__()
        self.velocity = velocity
        self.horizon = horizon
        self.action_dim = action_dim

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        t: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's mean squared velocity error. The caller draws noise ~ N(0, I) and t ~ U(0, 1)."""
        x_t = interpolate(noise, actions, t)
        error = self.velocity(x_t, t, condition) - (actions - noise)
        return error.square().mean(dim=(1, 2))

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return standardised actions: `noise` carried along the flow in `steps` Euler steps."""
        return euler(self.velocity, noise, condition, steps)
