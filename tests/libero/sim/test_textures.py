"""Textures are made smaller, and nothing else of a scene changes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.libero.installation import assets_dir
from pipeline.libero.settings import Sim
from pipeline.libero.sim import simulator
from pipeline.libero.sim.simulator import Simulator
from pipeline.libero.sim.textures import shrink
from pipeline.libero.suites import init_states, tasks

SIM = Sim(None, "full", "auto", 128, 10, 0)


def picture(path: Path, size: tuple[int, int], mode: str = "RGB") -> Path:
    values = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 4), np.uint8)
    Image.fromarray(values, "RGBA").convert(mode).save(path)
    return path


def scene(*files: Path) -> str:
    textures = "".join(f'<texture type="2d" name="t{i}" file="{file}"/>' for i, file in enumerate(files))
    return f'<mujoco><asset>{textures}<mesh file="{files[0]}"/></asset></mujoco>'


def test_large_textures_become_means_of_their_pixels(tmp_path: Path) -> None:
    large = picture(tmp_path / "large.png", (64, 32))
    small = picture(tmp_path / "small.png", (16, 8))
    xml, originals = shrink(scene(large, small), 16, tmp_path / "cache")
    ((copy, original),) = originals.items()
    assert original == str(large)
    assert xml == scene(large, small).replace(f'"t0" file="{large}"', f'"t0" file="{copy}"')
    expected = np.asarray(Image.open(large)).astype(float).reshape(8, 4, 16, 4, 3).mean((1, 3))
    np.testing.assert_allclose(np.asarray(Image.open(copy)), expected, atol=1)


@pytest.mark.parametrize(("mode", "colours"), [("RGBA", "RGBA"), ("P", "RGBA"), ("L", "RGB")])
def test_colours_stay_colours(mode: str, colours: str, tmp_path: Path) -> None:
    _, originals = shrink(scene(picture(tmp_path / "any.png", (40, 40), mode)), 10, tmp_path / "cache")
    with Image.open(next(iter(originals))) as copy:
        assert (copy.mode, copy.size) == (colours, (10, 10))


def test_a_copy_is_made_once_and_anew_of_other_content(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", (40, 40))
    first = next(iter(shrink(scene(file), 10, tmp_path / "cache")[1]))
    stamp = Path(first).stat().st_mtime_ns
    assert next(iter(shrink(scene(file), 10, tmp_path / "cache")[1])) == first
    assert Path(first).stat().st_mtime_ns == stamp
    Image.new("RGB", (40, 40)).save(file)
    assert next(iter(shrink(scene(file), 10, tmp_path / "cache")[1])) != first


def test_a_missing_texture_is_left_to_mujoco(tmp_path: Path) -> None:
    xml = scene(tmp_path / "gone.png")
    assert shrink(xml, 16, tmp_path / "cache") == (xml, {})


@pytest.mark.sim
@pytest.mark.slow
def test_pictures_are_those_of_liberos_textures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean difference is below 2 of 255, in full quality; and the scene's XML names LIBERO's own files."""
    task = tasks("libero_10", [0])[0]
    drawn, xml, texels = [], [], []
    for largest in (simulator.TEXELS_PER_PIXEL, 4096):
        monkeypatch.setattr(simulator, "TEXELS_PER_PIXEL", largest)
        with Simulator(task, SIM) as sim:
            sim.reset(init_states(task)[0], 0)
            drawn.append(sim.observe().images)
            xml.append(sim.model_xml())
            texels.append(sim.model.tex_data.size)
    for camera, image in drawn[1].items():
        assert np.abs(drawn[0][camera].astype(int) - image).mean() < 2
    assert xml[0] == xml[1]
    assert f'file="{assets_dir()}' in xml[0]
    assert texels[0] < texels[1] / 5
