"""A Matplotlib figure that notebooks show as a picture, though pyplot does not know of it."""

from io import BytesIO

from matplotlib.figure import Figure


class NotebookFigure(Figure):
    """A figure that needs no pyplot to be seen: where pyplot is in use, its own settings of figures hold."""

    def _repr_png_(self) -> bytes:
        """Return the picture; IPython asks for it."""
        file = BytesIO()
        self.savefig(file, format="png", dpi=120, bbox_inches="tight")
        return file.getvalue()
