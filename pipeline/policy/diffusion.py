"""Diffusion Policy's head (Chi et al., RSS 2023, arXiv 2303.04137): DDPM training, DDIM sampling."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from pipeline.policy.head import Head
from pipeline.policy.settings import NOISE_LEVELS
from pipeline.policy.velocity import at_times


class Diffusion(Head):
    """Predicts the noise in a noisy action; the squared-cosine schedule and samplers are those of `diffusers`.

    Actions are in [-1, 1], to which each step's estimate is clipped, as there.

    Args:
        denoiser: called as a velocity network is, with the noise level in [0, 1), 0 the least noise, in place of t.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler  # takes seconds to import

        self.denoiser = denoiser
        self._schedule: Any = DDIMScheduler(
            num_train_timesteps=NOISE_LEVELS,
            beta_schedule="squaredcos_cap_v2",
            clip_sample=True,
            timestep_spacing="trailing",  # from the last level, where all is noise, whatever the number of steps
        )

    def loss(
        self,
        actions: Float[Tensor, "B H A"],
        condition: Float[Tensor, "B W"],
        noise: Float[Tensor, "B H A"],
        u: Float[Tensor, " B"],
    ) -> Float[Tensor, " B"]:
        """Return each row's mean squared error of the noise, at level floor(100 u)."""
        level = (u * NOISE_LEVELS).long().clamp_max(NOISE_LEVELS - 1)
        noisy = self._schedule.add_noise(actions, noise, level)
        error = self.denoiser(noisy, level.to(actions.dtype) / NOISE_LEVELS, condition) - noise
        return error.square().mean(dim=(1, 2))

    def sample(
        self, condition: Float[Tensor, "B W"], noise: Float[Tensor, "B H A"], steps: int
    ) -> Float[Tensor, "B H A"]:
        """Return actions by `steps` steps of DDIM (Song et al., arXiv 2010.02502), without noise of their own."""
        if steps < 1 or NOISE_LEVELS % steps:  # the scheduler steps over so many levels at a time
            raise ValueError(f"steps is {steps}; the diffusion head takes a divisor of {NOISE_LEVELS}")
        self._schedule.set_timesteps(steps)
        # As in its `timesteps`, a tensor, whose values an export does not know.
        x, levels = noise, [NOISE_LEVELS - 1 - k * (NOISE_LEVELS // steps) for k in range(steps)]
        at = at_times(self.denoiser, [level / NOISE_LEVELS for level in levels], condition)
        for level in levels:
            x = self._schedule.step(at(x, level / NOISE_LEVELS), level, x).prev_sample
        return x
