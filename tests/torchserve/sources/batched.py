"""Tells how many requests came together; a body of `poison` fails them all, `slow SECONDS` takes its time."""

import time


class Batched:
    def initialize(self, context):
        self.batch_size = context.system_properties["batch_size"]

    def handle(self, data, context):
        texts = [bytes(row["body"]).decode() for row in data]
        for text in texts:
            if text == "poison":
                raise ValueError("a poisoned row")
            if text.startswith("slow "):
                time.sleep(float(text.split()[1]))
        return [{"row": text, "together": len(data), "most": self.batch_size} for text in texts]
