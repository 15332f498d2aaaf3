"""Strop sharpens the reasoning of small language models on a stated budget, and proves what it gained.

Nothing is imported here: `import strop` costs nothing, and each room (`strop.train`, `strop.record`, ...) is
imported by whoever needs it. The README ends with the map of the rooms.
"""

__version__ = "0.1.0"
