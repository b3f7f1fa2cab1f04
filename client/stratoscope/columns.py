"""Finding a column of activations by site and layer."""

from collections.abc import Sequence

from stratoscope_wire import Column
from stratoscope_wire.sites import MODEL_SITES, parse_column, stored_site

ColumnKey = tuple[str, int | None]
"""``(site, layer)``; the layer of ``embed`` and ``final_norm`` is ``None``."""


def column_key(column: Column) -> ColumnKey:
    """Return the key of a column."""
    return column.site, column.layer


def find_column(columns: Sequence[Column], site: str, layer: int | None, n_layers: int) -> Column:
    """Find the column that stores a site at a layer.

    Parameters
    ----------
    site
        A site, the alias ``resid_pre``, or, without a layer, a column name such as ``resid_post.12``.
    layer
        Negative ones count from the last layer of the model.

    Raises
    ------
    KeyError
        If there is no such column; the message lists those there are.
    """
    if layer is None and site not in MODEL_SITES:
        site, layer = _parsed(site)
    if layer is not None and -n_layers <= layer < 0:
        layer += n_layers
    wanted = stored_site(site, layer)
    for column in columns:
        if column_key(column) == wanted:
            return column
    name = site if layer is None else f"{site}.{layer}"
    raise KeyError(f"{name} was not captured; there are {', '.join(column.name for column in columns)}")


def _parsed(name: str) -> ColumnKey:
    site, _, layer = name.rpartition(".")
    if site == "resid_pre" and layer.isascii() and layer.isdigit():
        return site, int(layer)
    try:
        return parse_column(name)
    except ValueError:
        return name, None
