"""Records for tests that need no simulator."""

from pipeline.rollout.results import EpisodeRecord


def record(outcome: str = "success", task: int = 0, episode: int = 0, suite: str = "libero_spatial", **changes):
    """Return a plausible record."""
    values = {
        "suite": suite,
        "task": task,
        "name": f"task_{task}",
        "language": f"pick up bowl number {task} and place it on the plate",
        "episode": episode,
        "init_row": episode,
        "outcome": outcome,
        "error_kind": {"error": "simulator", "policy_error": "policy"}.get(outcome),
        "error": "RuntimeError('the <GL> context is lost') (gl.py:12)" if "error" in outcome else None,
        "attempts": 2 if outcome == "error" else 1,
        "steps": 220 if outcome == "failure" else 100 + episode,
        "policy_calls": 13,
        "renders": 13,
        "final_state": None if "error" in outcome else "0123456789abcdef",
        "seconds": 5.0,
        "reset_s": 1.0,
        "physics_s": 1.5,
        "render_s": 0.5,
        "policy_ms": (10.0, 20.0, 30.0),
    }
    return EpisodeRecord(**{**values, **changes})
