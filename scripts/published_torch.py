"""The published DINOv2 computation at its best in PyTorch: what the benchmarks compare with.

    python scripts/published_torch.py --check

compares three seeded training steps with the reference figures in tests/goldens and prints the largest deviation.

The vision transformer, the projection head, the losses and the step are those of Oquab et al. 2023 (arXiv 2304.07193)
and of the published code, with the names of its state dict. Attention is PyTorch's fused one; drop path above 0.1 runs
a branch on a subset of the batch; AdamW is the fused one; clipping and the moving average handle many tensors a call.
Crops are NCHW and crop-major, as published: all first views, then all second ones.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from published_models import Backbone, F, Head, load_backbone, load_head, torch

from dinojax import tree
from dinojax.models.vit import ViTArguments
from weights_convert import tables


@torch.no_grad()
def sinkhorn_knopp(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Three iterations on the whole matrix [K, B], as published: [B, K] to [B, K]."""
    q = torch.exp(logits.float() / temperature).t()
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(1, keepdim=True) * prototypes
        q /= q.sum(0, keepdim=True) * samples
    return (q * samples).t()


def cross_entropy(student: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """[B, K] twice to [B]."""
    return -(targets * F.log_softmax(student.float() / temperature, -1)).sum(-1)


def dino_loss(views: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], temperature: float) -> torch.Tensor:
    """The sum over all pairs of a student's and a teacher's view, each a mean over images."""
    pairs = []
    for student in views:
        log_probabilities = F.log_softmax(student.float() / temperature, -1)
        pairs += [-(target * log_probabilities).sum(-1).mean() for target in targets]
    return torch.stack(pairs).sum()


def koleo_loss(tokens: torch.Tensor) -> torch.Tensor:
    """[B, D] to a scalar."""
    normed = F.normalize(tokens.float(), dim=-1, eps=1e-8)
    with torch.no_grad():
        similarity = normed @ normed.t()
        similarity.fill_diagonal_(-1)
        nearest = similarity.argmax(1)
    return -torch.log(F.pairwise_distance(normed, normed[nearest], 2, eps=1e-8) + 1e-8).mean()


def parameter_group(name: str, depth: int, layer_decay: float, patch_embed: float) -> tuple[float, float, bool]:
    """Multipliers of the learning rate and of the weight decay, and whether it is one of the prototypes' tensors."""
    rate = 1.0
    if name.startswith("backbone."):
        parts = name.split(".")
        layer = int(parts[2]) + 1 if parts[1] == "blocks" else depth + 1 if parts[1] == "norm" else 0
        rate = layer_decay ** (depth + 1 - layer) * (patch_embed if parts[1] == "patch_embed" else 1.0)
    undecayed = name.endswith((".bias", ".gamma")) or ".norm" in name
    return rate, 0.0 if undecayed else 1.0, ".last_layer." in name


class SSLStep:
    """A whole training step: teacher, student, losses, clipping, AdamW, moving average.

    Args:
      arguments: of dinojax's backbone.
      params: `backbone.*` and `dino_head.*`, flat dicts of dinojax's parameters, which student and teacher begin with;
        one head serves both terms.
      drop_path, drop_path_uniform: rate, and whether it is the same in every block or rises linearly from 0.
      centering: 'sinkhorn_knopp' or 'softmax'.
      student_temperature, koleo_weight, center_momentum: of the losses; 0 leaves KoLeo out.
      layer_decay, patch_embed_lr, betas, clip: of the optimiser.
      device: 'cpu' or 'cuda'.
      bfloat16: runs both networks under autocast; the losses stay in float32.
      compiled: compiles both backbones with `torch.compile`.
      fused: PyTorch's fused AdamW, the faster on CPUs and GPUs alike, or else the `foreach` one.
    """

    def __init__(
        self,
        arguments: ViTArguments,
        params: Mapping[str, np.ndarray],
        *,
        drop_path: float = 0.0,
        drop_path_uniform: bool = False,
        centering: str = "sinkhorn_knopp",
        student_temperature: float = 0.1,
        koleo_weight: float = 0.1,
        center_momentum: float = 0.9,
        layer_decay: float = 0.9,
        patch_embed_lr: float = 0.2,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float = 3.0,
        device: str = "cpu",
        bfloat16: bool = False,
        compiled: bool = False,
        fused: bool = True,
    ) -> None:
        backbone = load_backbone(arguments, tree.subtree("backbone", params), drop_path, drop_path_uniform)
        head = load_head(tree.subtree("dino_head", params))
        self.student = torch.nn.ModuleDict({"backbone": backbone, "dino_head": head}).to(device).train()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        groups: dict[tuple[float, float, bool], list[torch.nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            key = parameter_group(name, arguments.depth, layer_decay, patch_embed_lr)
            groups.setdefault(key, []).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": found, "rate": rate, "decay": decay, "prototypes": prototypes}
                for (rate, decay, prototypes), found in groups.items()
            ],
            betas=betas,
            eps=1e-8,
            foreach=not fused,
            fused=fused,
        )
        self.centering, self.student_temperature = centering, student_temperature
        self.koleo_weight, self.center_momentum, self.clip = koleo_weight, center_momentum, clip
        prototypes = head.last_layer.weight_g.shape[0]
        self.centers = {name: torch.zeros(prototypes, device=device) for name in ("dino", "ibot")}
        self.autocast = torch.autocast(device, torch.bfloat16, enabled=bfloat16)
        wrap: Callable[[Any], Any] = torch.compile if compiled else lambda module: module
        self.student_backbone, self.teacher_backbone = (wrap(who["backbone"]) for who in (self.student, self.teacher))

    def __call__(
        self,
        globals_: torch.Tensor,
        locals_: torch.Tensor,
        masks: torch.Tensor,
        lr: float,
        weight_decay: float,
        momentum: float,
        temperature: float,
        frozen: bool = False,
    ) -> dict[str, float]:
        """Takes a step.

        Args:
          globals_: float32 [2·B, C, S, S], normalised, crop-major.
          locals_: float32 [L·B, C, s, s], likewise.
          masks: bool [2·B, N] of the student's global crops.
          lr, weight_decay, momentum, temperature: this step's, the last of the teacher.
          frozen: prototypes have learning rate 0, while their moments advance.

        Returns:
          The weighted terms, their sum `loss`, and the gradients' norms before clipping.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0 if frozen and group["prototypes"] else lr * group["rate"]
            group["weight_decay"] = weight_decay * group["decay"]
        places = masks.flatten().nonzero()[:, 0]
        weights = (1 / masks.sum(1).clamp(min=1)).repeat_interleave(masks.shape[1])[places]
        self.optimizer.zero_grad()
        targets = self._targets(globals_, places, temperature)
        terms = self._terms(globals_, locals_, masks, places, weights, targets)
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        norms = {
            f"grad_norm_{name}": torch.nn.utils.clip_grad_norm_(module.parameters(), self.clip, foreach=True)
            for name, module in self.student.items()
        }
        self.optimizer.step()
        with torch.no_grad():
            teacher, student = list(self.teacher.parameters()), list(self.student.parameters())
            torch._foreach_mul_(teacher, momentum)
            torch._foreach_add_(teacher, student, alpha=1 - momentum)
        found = {**terms, "loss": loss, **norms}
        return dict(zip(found, torch.stack([value.detach() for value in found.values()]).tolist(), strict=True))

    @torch.no_grad()
    def _targets(
        self, crops: torch.Tensor, places: torch.Tensor, temperature: float
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Those of the class tokens, the two views swapped, and of the masked patches."""
        with self.autocast:
            tokens = self.teacher_backbone(crops)
            masked = tokens[:, 1:].flatten(0, 1)[places]
            logits = self.teacher["dino_head"](torch.cat([tokens[:, 0], masked]))
        first, second = self._centered("dino", logits[: len(crops)], temperature).chunk(2)
        return [second, first], self._centered("ibot", logits[len(crops) :], temperature)

    def _centered(self, name: str, logits: torch.Tensor, temperature: float) -> torch.Tensor:
        if self.centering == "sinkhorn_knopp":
            return sinkhorn_knopp(logits, temperature)
        targets = F.softmax((logits.float() - self.centers[name]) / temperature, -1)
        self.centers[name].lerp_(logits.float().mean(0), 1 - self.center_momentum)
        return targets

    def _terms(
        self,
        globals_: torch.Tensor,
        locals_: torch.Tensor,
        masks: torch.Tensor,
        places: torch.Tensor,
        weights: torch.Tensor,
        targets: tuple[list[torch.Tensor], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        images = len(globals_) // 2
        views = len(locals_) // images
        with self.autocast:
            tokens = self.student_backbone(globals_, masks)
            local_tokens = self.student_backbone(locals_)
            masked = tokens[:, 1:].flatten(0, 1)[places]
            logits = self.student["dino_head"](torch.cat([local_tokens[:, 0], tokens[:, 0], masked]))
        local_logits, global_logits, masked_logits = logits.split([len(locals_), len(globals_), len(masked)])
        temperature, pairs = self.student_temperature, 2 + 2 * views
        terms = {
            "dino_local": dino_loss(local_logits.chunk(views), targets[0], temperature) / pairs,
            "dino_global": cross_entropy(global_logits, torch.cat(targets[0]), temperature).mean() * 2 / pairs,
            "ibot": (cross_entropy(masked_logits, targets[1], temperature) * weights).sum() / len(globals_),
        }
        if self.koleo_weight:
            both = tokens[:, 0].chunk(2)
            terms["koleo"] = self.koleo_weight * (koleo_loss(both[0]) + koleo_loss(both[1]))
        return terms


def crop_major(views: np.ndarray) -> torch.Tensor:
    """dinojax's views [B, V, ...] as the published [V·B, ...]; images [B, V, H, W, C] become NCHW."""
    views = np.swapaxes(views, 0, 1).reshape(-1, *views.shape[2:])
    return torch.from_numpy(np.ascontiguousarray(views.transpose(0, 3, 1, 2) if views.ndim == 4 else views))


def check() -> None:
    """Three steps on the reference figures' tiny model; prints the largest relative deviation of terms and norms."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests import goldens_reader as goldens

    arguments = ViTArguments(32, 2, 2, image_size=70)
    modules = torch.nn.ModuleDict({"backbone": Backbone(arguments), "dino_head": Head([32, 48, 48, 16], 128)})
    tensors = {name: goldens.rebuild(name, tuple(value.shape)) for name, value in modules.state_dict().items()}
    params = tree.prefixed("backbone", tables.dinov2_backbone(tree.subtree("backbone", tensors)))
    params |= tree.prefixed("dino_head", tables.dino_head(tree.subtree("dino_head", tensors)))
    names = {"koleo": "koleo_weighted", "loss": "total"}
    for centering, kind in (("sinkhorn_knopp", "sinkhorn_knopp"), ("centering", "softmax")):
        golden = goldens.load(f"ssl_steps_{centering}.npz")
        step = SSLStep(arguments, params, centering=kind)
        worst = 0.0
        for i in range(3):
            globals_ = torch.from_numpy(goldens.rebuild(f"input.ssl.global.{i}", (8, 3, 70, 70)))
            locals_ = torch.from_numpy(goldens.rebuild(f"input.ssl.local.{i}", (32, 3, 42, 42)))
            masks = torch.from_numpy(golden[f"step{i}.masks"].reshape(8, -1).astype(bool))
            schedules = (1e-3 * (i + 1), 0.04 + 0.02 * i, 0.992 + 0.002 * i, 0.04 + 0.01 * i)
            for name, value in step(globals_, locals_, masks, *schedules, frozen=i == 0).items():
                published = float(golden[f"step{i}.{names.get(name, name.replace('grad_norm_', 'grad_norm.'))}"])
                worst = max(worst, abs(value - published) / abs(published))
        weights = max(
            float(np.abs(value.numpy() - golden[f"final.{who}.{name}"]).max())
            for who, module in (("student", step.student), ("teacher", step.teacher))
            for name, value in module.state_dict().items()
            if not name.endswith("qkv.bias")  # the key third's true gradient is zero: Adam amplifies rounding
        )
        print(f"{centering}: terms and norms deviate by {worst:.1e} (relative), final weights by {weights:.1e}")
        if worst > 1e-4:
            sys.exit(f"the PyTorch step with {centering} is not the published one")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True)
    parser.parse_args()
    check()
