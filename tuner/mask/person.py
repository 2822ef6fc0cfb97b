"""Where people are in a picture: MediaPipe's selfie segmentation, a quarter of a megabyte (see NOTICE)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

MODEL = Path(__file__).with_name("selfie_segmentation.tflite")
EDGE = 256
"""The network sees the whole picture as a square of this size."""
STEEP = 4.0
"""Its answer is doubtful in a band along the edge; this narrows the band to a quarter, which leaves a soft edge."""
LEAST = 0.002
"""Share of the picture below which what was found is a speck and no person."""


class People:
    """The network, loaded once."""

    def __init__(self) -> None:
        self.net = cv2.dnn.readNetFromTFLite(np.frombuffer(MODEL.read_bytes(), np.uint8))

    def mask(self, picture: Image.Image) -> Image.Image | None:
        """An "L" picture of the same size, white where people are; None where there is nobody."""
        square = np.asarray(picture.convert("RGB").resize((EDGE, EDGE), Image.Resampling.BILINEAR), np.float32) / 255
        self.net.setInput(np.ascontiguousarray(square.transpose(2, 0, 1)[None]))
        sure = self.net.forward().reshape(EDGE, EDGE)
        if (sure > 0.5).mean() < LEAST:
            return None
        # enlarged before it is made steep: the other way round the edge would show the 256 steps
        large = np.asarray(Image.fromarray(sure).resize(picture.size, Image.Resampling.BICUBIC))
        return Image.fromarray((np.clip((large - 0.5) * STEEP + 0.5, 0, 1) * 255).round().astype(np.uint8))
