"""Under KServe's v2 envelope: tells the types of what it got, or gives back what an input named for a kind says."""

RESULTS = {
    "floats": [0.5, 1.5],
    "integers": [1, 2],
    "strings": ["a", "b"],
    "objects": {"a": 1},
    "nested": [[1, 2], [3, 4]],
    "scalar": 7,
}


def handle(data, context):
    if data is None:
        return None
    if data[0]["name"] == "many":
        return [1, 2]
    return [RESULTS.get(item["name"], item["data"]) for item in data]
