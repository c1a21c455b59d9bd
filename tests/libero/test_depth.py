"""Depth as a picture."""

import numpy as np

from pipeline.libero.depth import FAR, NEAR, depth_picture, to_millimetres


def test_near_is_white_far_is_black_and_equal_steps_are_equal_ratios() -> None:
    metres = np.array([[0.0, 0.01, NEAR, 0.1, 0.2, 0.4, FAR, 3.0, 80.0]])
    millimetres = to_millimetres(metres)
    assert millimetres.shape == (1, 9, 1) and millimetres.dtype == np.uint16
    assert millimetres[0, :, 0].tolist() == [0, 10, 50, 100, 200, 400, 2000, 3000, 65535]
    grey = depth_picture(millimetres)
    assert grey.shape == (1, 9, 3) and grey.dtype == np.uint8
    assert (grey == grey[..., :1]).all()
    values = grey[0, :, 0].astype(int)
    assert values[[0, 1, 2, 6, 7, 8]].tolist() == [0, 255, 255, 0, 0, 0]
    np.testing.assert_allclose(np.diff(values[2:6]), -255 * np.log(2) / np.log(FAR / NEAR), atol=1)


def test_a_millimetre_and_a_half_shows_at_the_finger_tips_and_15_at_a_metre() -> None:
    for metres, step in ((0.1, 0.0015), (1.0, 0.015)):
        near, far = depth_picture(to_millimetres(np.array([[metres, metres + step]])))[0, :, 0].astype(int)
        assert near - far == 1
