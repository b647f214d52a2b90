"""What `report` can be told."""

import dataclasses

from dinojax.config.bounds import positional


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Computes every number anew from the runs' predictions, and writes one table and its plots."""

    out: str
    """Directory of the report; files of an earlier one are replaced."""
    runs: tuple[str, ...] = positional("directories of finished runs of finetune or evaluate")
    names: tuple[str, ...] | None = None
    """What the report calls the starting points, one a run, in their order: 'DINOv2 ViT-S,SSL'; names with commas as
    '["a, b", "c"]'."""
