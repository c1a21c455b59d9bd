"""The embedded asset pack: low-poly stand-ins for LIBERO's objects, furniture and room, made by this package alone.

`build(root)` writes a directory in the layout that hf-libero expects of its assets, for the suites in COVERED_SUITES.
Sizes, masses, joints, sites and collision boxes are LIBERO's numbers (MIT licence); meshes and textures are our own.
"""

from pipeline.libero.assets.pack import COVERED_SUITES, PACK_VERSION, build

__all__ = ["COVERED_SUITES", "PACK_VERSION", "build"]
