"""A drawing as a PNG, by matplotlib (the extra `plan`), which is imported when one is drawn."""

from pathlib import Path
from typing import Any

from torpor.predictors.settings import SettingError


def new_figure(width: float, height: float) -> Any:
    """matplotlib's Figure, in inches. Raises SettingError where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise SettingError("--plot needs matplotlib: pip install 'torpor[plan]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Raises SettingError where the file cannot be written."""
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise SettingError(f"--plot: {path}: {error}") from None
