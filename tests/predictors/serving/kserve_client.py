"""Asks a server of the model `echo` by the clients of KServe's SDK; prints {case: difference, "" for none} as JSON."""

import asyncio
import json
import sys

import kserve
import numpy as np
from kserve.utils.numpy_codec import to_np_dtype

FORMS = {"v2 REST JSON": False, "v2 REST binary": True, "gRPC typed": False, "gRPC raw": True}
DATATYPES = [
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BYTES",
]


def request(array: np.ndarray, datatype: str, is_binary: bool) -> kserve.InferRequest:
    tensor = kserve.InferInput("x", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=is_binary)
    parameters = {"binary_data_output": True} if is_binary else None
    return kserve.InferRequest("echo", [tensor], request_id="5", parameters=parameters)


def difference(response: kserve.InferResponse, array: np.ndarray) -> str:
    got = (response.id, response.model_name, response.model_version or "1")  # the SDK drops it from REST responses
    output = response.outputs[0].as_numpy()
    texts = [e.decode() if isinstance(e, bytes) else e for e in output.ravel()]
    expected = [e.decode() if isinstance(e, bytes) else e for e in array.ravel()]
    if got == ("5", "echo", "1") and output.shape == array.shape and output.dtype == array.dtype and texts == expected:
        return ""
    return f"{got} {output!r}"


async def main(address: str) -> None:
    base, answers = f"http://{address}", {}
    rest = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    grpc = kserve.InferenceGRPCClient(address)
    for client, where in ((rest, [base]), (grpc, [])):
        assert await client.is_server_ready(*where)
        assert await client.is_server_live(*where)
        assert await client.is_model_ready(*where, "echo")
    for datatype in DATATYPES:
        texts = np.array([[b"a", b""], ["é".encode(), b"long" * 100]], object)
        array = texts if datatype == "BYTES" else np.array([[0, 1], [1, 0]], to_np_dtype(datatype))
        for form, is_binary in FORMS.items():
            if datatype == "FP16" and not is_binary:
                continue
            try:
                sent = request(array, datatype, is_binary)
                if form.startswith("gRPC"):
                    sent.parameters = None
                    response = await grpc.infer(sent)
                else:
                    response = await rest.infer(base, sent, model_name="echo")
                answers[f"{form} {datatype}"] = difference(response, array)
            except Exception as error:
                answers[f"{form} {datatype}"] = repr(error)
    await grpc.close()
    await rest.close()
    v1 = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
    assert await v1.is_model_ready(base, "echo")
    answer = await v1.infer(base, {"instances": [[1, 2]]}, model_name="echo")
    answers["v1"] = "" if answer == {"predictions": [[1, 2]]} else repr(answer)
    rows = [[n % 7 for n in range(500)]] * 20  # long enough to be compressed, which the client asks for by itself
    answer = await v1.infer(base, {"instances": rows}, model_name="echo")
    answers["v1 compressed"] = "" if answer == {"predictions": rows} else repr(answer)
    await v1.close()
    print(json.dumps(answers))


asyncio.run(main(sys.argv[1]))
