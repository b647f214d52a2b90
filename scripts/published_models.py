"""DINOv2's vision transformer and projection head, and ResNet50, in PyTorch, for the benchmarks to compare with.

The first two are those of Oquab et al. 2023 (arXiv 2304.07193) and have the names of the published state dict;
attention is PyTorch's fused one, and drop path above 0.1 runs a branch on a subset of the batch. ResNet50 is
torchvision's V1.5.
"""

import itertools
import sys
from collections.abc import Callable, Mapping

import numpy as np

# The other benchmarks import PyTorch from here, so that all of them say the same when it is missing.
try:
    import torch  # pyright: ignore[reportMissingImports]
    import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]
except ImportError:
    sys.exit("this benchmark compares with PyTorch, which is not installed: pip install -e '.[bench]'")

from dinojax.models import Arguments, ResNetArguments, ViTArguments
from weights_convert import mapping, tables


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width)
        self.ls2 = LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._residual(x, lambda x: self.ls1(self.attn(self.norm1(x))))
        return self._residual(x, lambda x: self.ls2(self.mlp(self.norm2(x))))

    def _residual(self, x: torch.Tensor, branch: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        if not self.training or self.drop_path == 0:
            return x + branch(x)
        if self.drop_path <= 0.1:
            kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_path)
            return x + branch(x) * kept / (1 - self.drop_path)
        subset = max(int(len(x) * (1 - self.drop_path)), 1)
        chosen = torch.randperm(len(x), device=x.device)[:subset]
        added = branch(x[chosen]).to(x.dtype)
        return torch.index_add(x, 0, chosen, added, alpha=len(x) / subset)


class Backbone(nn.Module):
    """The vision transformer without registers: [B, C, H, W] to tokens [B, 1 + N, D], the class token first."""

    def __init__(self, arguments: ViTArguments, drop_path: float = 0.0, drop_path_uniform: bool = False) -> None:
        super().__init__()
        if arguments.registers or arguments.mlp != "gelu":
            raise ValueError("registers and SwiGLU are not written for the comparison")
        width, size = arguments.width, arguments.patch_size
        self.side = arguments.image_size // size
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(arguments.channels, width, size, size)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self.side**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        rates = np.full(arguments.depth, drop_path) if drop_path_uniform else np.linspace(0, drop_path, arguments.depth)
        self.blocks = nn.ModuleList(Block(width, arguments.heads, float(rate)) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        patches = self.patch_embed["proj"](x)
        grid = patches.shape[2:]
        patches = patches.flatten(2).transpose(1, 2)
        if masks is not None:
            patches = torch.where(masks[:, :, None], self.mask_token.to(patches.dtype), patches)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = torch.cat([first, patches + self._positions(grid[0], grid[1])], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    def _positions(self, height: int, width: int) -> torch.Tensor:
        if (height, width) == (self.side, self.side):
            return self.pos_embed[:, 1:]
        table = self.pos_embed[:, 1:].unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        factors = ((height + 0.1) / self.side, (width + 0.1) / self.side)  # by factor and with an offset, as published
        return F.interpolate(table, scale_factor=factors, mode="bicubic").flatten(2).transpose(1, 2)


class Prototypes(nn.Module):
    """A linear layer with weight norm, its magnitudes trained."""

    def __init__(self, width: int, prototypes: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1))
        self.weight_v = nn.Parameter(torch.zeros(prototypes, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))  # the kernel of `nn.utils.weight_norm`


class Head(nn.Module):
    """The projection head: [B, D] to logits [B, K]."""

    def __init__(self, widths: list[int], prototypes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = Prototypes(widths[-1], prototypes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, eps=1e-12))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, filters: int, stride: int, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, filters, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(filters)
        self.conv2 = nn.Conv2d(filters, filters, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(filters)
        self.conv3 = nn.Conv2d(filters, 4 * filters, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * filters)
        if first:
            shortcut = nn.Conv2d(inputs, 4 * filters, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * filters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        added = self.downsample(x) if hasattr(self, "downsample") else x
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + added, inplace=True)


class ResNet50(nn.Module):
    """[B, C, H, W] to the last feature map [B, D, h, w], with the names of torchvision."""

    def __init__(self, arguments: ResNetArguments) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(arguments.channels, arguments.stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(arguments.stem)
        inputs = arguments.stem
        for stage, (blocks, filters) in enumerate(zip(arguments.blocks, arguments.filters, strict=True), start=1):
            made = []
            for k in range(blocks):
                made.append(Bottleneck(inputs, filters, 2 if k == 0 and stage > 1 else 1, k == 0))
                inputs = 4 * filters
            setattr(self, f"layer{stage}", nn.Sequential(*made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x)), inplace=True), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def load_resnet(arguments: ResNetArguments, params: Mapping[str, np.ndarray]) -> ResNet50:
    """ResNet50 with dinojax's parameters (of `dinojax.tree.split`)."""
    model = ResNet50(arguments)
    model.load_state_dict(state_dict(params, tables.torchvision_table(arguments.blocks)))
    return model


def load_published(arguments: Arguments, params: Mapping[str, np.ndarray]) -> nn.Module:
    """The published model of these arguments with dinojax's parameters."""
    if isinstance(arguments, ResNetArguments):
        return load_resnet(arguments, params)
    return load_backbone(arguments, params)


def state_dict(params: Mapping[str, np.ndarray], table: mapping.Table) -> dict[str, torch.Tensor]:
    """dinojax's parameters, by path without prefix, as a published state dict in the layout of the table."""
    shapes = {path: value.shape for path, value in params.items()}
    tensors = mapping.to_theirs(params, shapes, table)
    return {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}


def load_backbone(
    arguments: ViTArguments, params: Mapping[str, np.ndarray], drop_path: float = 0.0, drop_path_uniform: bool = False
) -> Backbone:
    """The backbone with dinojax's parameters (of `dinojax.tree.split`)."""
    backbone = Backbone(arguments, drop_path, drop_path_uniform)
    table = tables.dinov2_table(arguments.registers > 0, arguments.mlp == "swiglu")
    backbone.load_state_dict(state_dict(params, table))
    return backbone


def load_head(params: Mapping[str, np.ndarray]) -> Head:
    """The head with dinojax's parameters, which also tell its sizes."""
    kernels = [params[f"mlp.{i}.kernel"] for i in range(sum(path.endswith(".kernel") for path in params))]
    head = Head([kernels[0].shape[0], *(kernel.shape[1] for kernel in kernels)], len(params["last_layer.weight_g"]))
    head.load_state_dict(state_dict(params, tables.dino_head_table(len(kernels))))
    return head
