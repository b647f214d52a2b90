"""DINOv2 on medical images in JAX: continue its pre-training, fine-tune, compare fold by fold."""

from dinojax.models import Features, Preprocessing, create_model, model_names, preprocess
from dinojax.models.store import load_model, save_model

__all__ = ["Features", "Preprocessing", "create_model", "load_model", "model_names", "preprocess", "save_model"]
