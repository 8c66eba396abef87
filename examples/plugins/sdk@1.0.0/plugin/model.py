"""A deployment in the SDK's form: the action names the class that is served."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from synapse_sdk.plugins.actions.inference import BaseDeploymentAction, BaseServeDeployment

app = FastAPI()
WEIGHTS = {"good": 1, "great": 1, "bad": -1, "poor": -1}


class Text(BaseModel):
    text: str


class Sentiment(BaseServeDeployment):
    app = app

    async def _get_model(self, model_info: dict[str, Any]) -> dict[str, int]:
        return WEIGHTS

    @app.post("/")
    async def classify(self, body: dict[str, Any]) -> Any:
        return await self.handle_inference(body=body, input_model=Text, runner=self.infer)

    async def infer(self, data: Text) -> dict[str, str]:
        score = sum(WEIGHTS.get(word, 0) for word in data.text.lower().split())
        return {"label": "positive" if score > 0 else "negative" if score < 0 else "neutral"}


class Deployment(BaseDeploymentAction):
    entrypoint = Sentiment

    def execute(self) -> dict[str, Any]:
        self.ray_init()
        self.set_progress(1, 3, self.progress.INITIALIZE)
        self.deploy()
        self.set_progress(2, 3, self.progress.DEPLOY)
        application = self.register_serve_application()
        self.set_progress(3, 3, self.progress.REGISTER)
        return {"serve_application": application}
