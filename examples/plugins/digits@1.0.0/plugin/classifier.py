"""A classifier of 8x8 handwritten digits: trained when a replica starts, on one half of the data set."""

import io
from typing import Any

import httpx
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from worker.actions import BaseServeDeployment

TRAINING_ROWS = 898
GREY_STEP = 15  # the data set's pixels are 0 to 16, the images' 0 to 240


class DigitClassifier(BaseServeDeployment):
    """Answers `{"image_url": ...}` with `{"digit": 7}`."""

    def __init__(self, backend_url: str) -> None:
        super().__init__(backend_url)
        images, labels = load_digits(return_X_y=True)
        self._classifier = SVC(gamma=0.001).fit(images[:TRAINING_ROWS], labels[:TRAINING_ROWS])
        self._http = httpx.AsyncClient(timeout=10)

    async def _get_model(self, model_info: dict[str, Any]) -> SVC:
        return self._classifier

    async def infer(self, data: dict[str, Any]) -> dict[str, int]:
        model = await self.get_model()
        answer = await self._http.get(data["image_url"])
        answer.raise_for_status()
        image = Image.open(io.BytesIO(answer.content)).convert("L").resize((8, 8), Image.Resampling.BOX)
        pixels = np.asarray(image, dtype=float).reshape(1, 64) / GREY_STEP
        return {"digit": int(model.predict(pixels)[0])}
