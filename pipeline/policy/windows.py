"""Windows in time: the chunk of H actions from a row on, observations before it, and keyframes after it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def action_windows(
    actions: Float[Tensor, "N A"], last: Int[Tensor, " N"], rows: Int[Tensor, " B"], horizon: int
) -> Float[Tensor, "B H A"]:
    """Return actions[r], ..., actions[r + H - 1] for each row r.

    Past the episode's end (`last[r]` is its last row) the final action repeats, as Diffusion Policy pads: a policy that
    is asked for more after the last recorded step goes on doing what it did.
    """
    offsets = torch.arange(horizon, device=rows.device)
    index = torch.minimum(rows[:, None] + offsets[None], last[rows][:, None])
    return actions[index]


def next_changes(gripper: Float[Tensor, " N"], last: Int[Tensor, " N"]) -> Int[Tensor, "N 2"]:
    """Return the rows after each row where the gripper's command next changes, and where after that.

    The episode's last row (`last`) stands in for what does not come.
    """
    rows = torch.arange(len(gripper))
    changes = torch.zeros(len(gripper), dtype=torch.bool)
    changes[1:] = (gripper[1:] > 0) != (gripper[:-1] > 0)
    changes[1:] &= last[1:] == last[:-1]
    here = torch.where(changes, rows, len(gripper))
    from_here = here.flip(0).cummin(0).values.flip(0)
    following = torch.minimum(torch.cat([from_here[1:], from_here.new_full((1,), len(gripper))]), last)
    return torch.stack([following, following[following]], dim=1)


def past_rows(first: Int[Tensor, " N"], n_obs_steps: int, stride: int) -> Int[Tensor, "N L"]:
    """Return the rows that a policy of `n_obs_steps` observations sees at each row, oldest first, `stride` steps apart.

    Before the episode's start (`first[r]` is its first row) that row stands in, as the first observation does in
    a rollout.
    """
    rows = torch.arange(len(first))
    back = stride * torch.arange(n_obs_steps - 1, -1, -1)
    return torch.maximum(rows[:, None] - back[None], first[:, None])
