"""Tells how many requests came together, or does what a body's first word says.

`poison` fails them all, `slow SECONDS` takes its time, `pieces` sends one to each.
"""

import time

from ts.handler_utils.utils import send_intermediate_predict_response


class Batched:
    def initialize(self, context):
        self.batch_size = context.system_properties["batch_size"]

    def handle(self, data, context):
        texts = [bytes(row["body"]).decode() for row in data]
        for text in texts:
            if text == "poison":
                raise ValueError("a poisoned row")
            if text.startswith("pieces"):
                pieces = [f"piece of {row}: " for row in texts]
                send_intermediate_predict_response(pieces, context.request_ids, "Intermediate", 200, context)
                break
            if text.startswith("slow "):
                time.sleep(float(text.split()[1]))
        return [{"row": text, "together": len(data), "most": self.batch_size} for text in texts]
