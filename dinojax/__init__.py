"""DINOv2 on medical images in JAX: continue its pre-training, fine-tune, compare fold by fold.

Names are looked up when they are first used, so that `import dinojax` alone loads no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinojax.api import evaluate, finetune, pretrain, report
    from dinojax.models import Features, Preprocessing, create_model, model_names, preprocess
    from dinojax.models.store import load_model, save_model

__all__ = [
    "Features",
    "Preprocessing",
    "create_model",
    "evaluate",
    "finetune",
    "load_model",
    "model_names",
    "preprocess",
    "pretrain",
    "report",
    "save_model",
]

_HOMES = {
    **dict.fromkeys(("evaluate", "finetune", "pretrain", "report"), "dinojax.api"),
    **dict.fromkeys(("load_model", "save_model"), "dinojax.models.store"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dinojax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "dinojax.models")), name)


def __dir__() -> list[str]:
    return sorted(__all__)
