"""Two classes: TorchServe refuses to choose."""


class One:
    def initialize(self, context): ...

    def handle(self, data, context):
        return ["one"] * len(data)


class Two(One): ...
