"""Gives back whatever comes, of any datatype and shape."""


class Echo:
    def predict(self, **inputs):
        return inputs
