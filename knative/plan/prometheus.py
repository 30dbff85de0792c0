"""Traffic that Prometheus has seen: a query of requests a second, over a stretch of time.

https://prometheus.io/docs/prometheus/latest/querying/api/#range-queries
"""

import json
import math
from typing import Any
from urllib.parse import urlencode, urlsplit

from torpor.predictors.settings import SettingError

_MOST_POINTS = 11_000
"""Prometheus gives no more of a series."""


def rates(url: str, query: str, since_s: float, until: float, step_s: float) -> list[float]:
    """Requests a second, for each second from `until - since_s` to `until`, a Unix time; several series are added up.

    Between two samples the rate is a straight line; where there is none, nothing came. Raises SettingError.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingError(f"--prometheus: {url!r}, must be of the form http://HOST:PORT")
    if since_s / step_s > _MOST_POINTS:
        raise SettingError(f"--step: {step_s:g} s over {since_s:g} s, must be at least {since_s / _MOST_POINTS:.3g} s")
    parameters = urlencode({"query": query, "start": until - since_s, "end": until, "step": step_s})
    found = _asked(f"{url.rstrip('/')}/api/v1/query_range?{parameters}")
    steps = round(since_s / step_s)
    points = [0.0] * (steps + 1)
    for series in found:
        for at, value in series["values"]:
            if math.isfinite(number := float(value)):
                points[min(steps, max(0, round((float(at) - until + since_s) / step_s)))] += max(0.0, number)
    if not any(points):
        raise SettingError(f"--query: {query!r} has no requests within {since_s:g} s, must have some")
    return [_between(points, second / step_s) for second in range(round(since_s))]


def _between(points: list[float], at: float) -> float:
    low = min(int(at), len(points) - 1)
    high = min(low + 1, len(points) - 1)
    return points[low] + (points[high] - points[low]) * (at - low)


def _asked(url: str) -> list[dict[str, Any]]:
    import urllib.error  # here, since `torpor serve` starts without them
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:  # Prometheus says why in the body
        try:
            reason = json.load(error)["error"]
        except (ValueError, KeyError):
            reason = str(error)
        raise SettingError(f"--query: {reason}") from None
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise SettingError(f"--prometheus: {url.partition('?')[0]}: {error}") from None
    data = answer.get("data", {})
    if data.get("resultType") != "matrix":
        raise SettingError(f"--query: gives a {data.get('resultType')}, must give series of numbers")
    return list(data["result"])
