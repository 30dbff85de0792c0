"""The user's class and the device that it runs on; the only place of the predictors that imports torch."""
