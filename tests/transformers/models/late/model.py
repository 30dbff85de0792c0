"""The same as coroutines, which see their caller: a header, an id, the time that is left."""

import asyncio
from typing import Annotated

import numpy as np


class Late:
    outputs = {"said": "bytes[rows]"}

    async def preprocess(self, word: Annotated[np.ndarray, "bytes[rows]"], request):
        await asyncio.sleep(0)
        if b"wait" in word:
            await asyncio.sleep(60)
        return {"x": [np.array(list(text), np.float32) for text in word]}

    async def postprocess(self, total: Annotated[np.ndarray, "float32[rows]"], request):
        await asyncio.sleep(0)
        return [f"{request.headers.get('x-who')} {request.id} {value:g}" for value in total]
