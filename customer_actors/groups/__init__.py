"""The engine: streams, the advance loop, holds and the sweep, ignorant of the customers' business."""
