"""Training data: folders, readers, clips."""
from .clips import PairClips, PhotoClips, VideoClips, open_clips

__all__ = ["PairClips", "PhotoClips", "VideoClips", "open_clips"]
