"""A rectified-flow vision-language-action policy for LIBERO, on cached CLIP features."""

__version__ = "0.1.0"
