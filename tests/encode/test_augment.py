"""Views: torchvision's brightness and contrast, by factors that depend on content alone."""

import numpy as np
import torch
from torchvision.transforms import functional

from pipeline.encode.augment import Views, relight
from tests.encode.test_preprocess import pictures

VIEWS = Views(3, 0.3, 0.6)


def test_relight_is_torchvisions() -> None:
    frames = torch.from_numpy(np.concatenate([pictures(64), pictures(64)]))
    factors = np.array([[1.3, 0.7], [0.6, 1.4], [1.0, 1.0], [0.0, 1.2], [1.25, 0.0], [1.9, 1.9]])
    found = relight(frames, factors)
    for frame, (brightness, contrast), ours in zip(frames.permute(0, 3, 1, 2), factors, found, strict=True):
        theirs = functional.adjust_contrast(functional.adjust_brightness(frame, brightness), contrast)
        assert torch.equal(ours.permute(2, 0, 1), theirs)
    assert torch.equal(found[2], frames[2])


def test_factors_are_uniform_and_independent() -> None:
    factors = VIEWS.factors("a", 0, 4000, "agentview", 1)
    for column, low, high in ((factors[:, 0], 0.7, 1.3), (factors[:, 1], 0.4, 1.6)):
        assert low <= column.min() < low + 0.01 and high - 0.01 < column.max() < high
        np.testing.assert_allclose(np.histogram(column, 4, (low, high))[0], 1000, atol=100)
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.05
    assert Views(2, 1.5, 0.0).factors("a", 0, 4000, "agentview", 1).min(0).round(2).tolist() == [0, 1]


def test_factors_depend_on_content_alone() -> None:
    whole = VIEWS.factors("a", 0, 40, "agentview", 1)
    np.testing.assert_array_equal(VIEWS.factors("a", 13, 40, "agentview", 1), whole[13:])
    np.testing.assert_array_equal(whole[0], [0.760804927453568, 1.1848980853567876])  # on every machine, for good
    others = (
        VIEWS.factors("b", 0, 40, "agentview", 1),
        VIEWS.factors("a", 0, 40, "eye_in_hand", 1),
        VIEWS.factors("a", 0, 40, "agentview", 2),
    )
    for other in others:
        assert not (other == whole).any()


def test_identity_has_what_matters() -> None:
    assert Views(1, 0.3, 0.6).identity() == Views(1, 0.0, 0.1).identity() == {"views": 1}
    for other in (Views(2, 0.3, 0.6), Views(3, 0.2, 0.6), Views(3, 0.3, 0.5)):
        assert other.identity() != VIEWS.identity()
