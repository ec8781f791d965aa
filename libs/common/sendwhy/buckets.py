"""Histograms that take a batch's values at once: prometheus_client's own take one at a time, each under a lock."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Observed:
    """What was observed under one set of labels. For one thread, as all of a service's work is done in one."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, *values: float) -> None:
        for each in values:
            self.counts[bisect_left(self.bounds, each)] += 1
        self.total += sum(values)


class Buckets(Collector):
    """A histogram with its series. `bounds` rise; what is above the last one is counted, too."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._meaning, self._labels, self._bounds = name, meaning, labels, bounds
        self._series: dict[tuple[str, ...], Observed] = {}
        if not labels:
            self.labels()

    def labels(self, **values: str) -> Observed:
        key = tuple(str(values[name]) for name in self._labels)
        if key not in self._series:
            self._series[key] = Observed(self._bounds)
        return self._series[key]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        marks = [*map(floatToGoString, self._bounds), "+Inf"]
        for key, observed in self._series.items():
            family.add_metric(key, list(zip(marks, accumulate(observed.counts), strict=True)), observed.total)
        yield family
