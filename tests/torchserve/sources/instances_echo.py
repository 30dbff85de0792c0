"""Under KServe's v1 envelope: `instances` is the data; what came is told, an instance may ask for less or for an error."""

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return ["data is None"]
    if data == ["nothing"]:
        return []
    if data == ["raise"]:
        raise ValueError("as asked")
    if data == ["pieces"]:
        send_intermediate_predict_response(["piece "], context.request_ids, "Intermediate", 200, context)
    if data == ["short"]:
        return ["one"]
    return [[type(item).__name__, item] for item in data]
