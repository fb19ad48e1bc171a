"""timewalk: image encoders learned from video, and what they learned, measured."""
