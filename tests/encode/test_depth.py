"""Depth as a picture."""

import numpy as np

from pipeline.encode.depth import FAR, NEAR, depth_picture, to_millimetres


def test_near_is_white_far_is_black_and_equal_steps_are_equal_ratios() -> None:
    metres = np.array([[0.0, 0.01, NEAR, 0.2, 0.4, 0.8, FAR, 3.0, 80.0]])
    millimetres = to_millimetres(metres)
    assert millimetres.shape == (1, 9, 1) and millimetres.dtype == np.uint16
    assert millimetres[0, :, 0].tolist() == [0, 10, 100, 200, 400, 800, 2000, 3000, 65535]
    grey = depth_picture(millimetres)
    assert grey.shape == (1, 9, 3) and grey.dtype == np.uint8
    assert (grey == grey[..., :1]).all()
    values = grey[0, :, 0].astype(int)
    assert values[[0, 1, 2, 6, 7, 8]].tolist() == [0, 255, 255, 0, 0, 0]
    np.testing.assert_allclose(np.diff(values[2:6]), -255 * np.log(2) / np.log(FAR / NEAR), atol=1)


def test_a_millimetre_shows_at_the_hand_and_13_at_a_metre() -> None:
    for metres, step in ((0.1, 0.0013), (1.0, 0.013)):
        near, far = depth_picture(to_millimetres(np.array([[metres, metres + step]])))[0, :, 0].astype(int)
        assert near - far == 1
