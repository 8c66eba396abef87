"""Puts the classifier online."""

from plugin.classifier import DigitClassifier
from worker.actions import BaseDeploymentAction


class Deployment(BaseDeploymentAction):
    entrypoint = DigitClassifier
