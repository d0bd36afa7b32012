"""Models whose cost is right under a client axis, and what connects any library's models to dflax."""

from dflax.models.adapters.adapter import Apply
from dflax.models.apply import as_apply, variables, with_variables
from dflax.models.averaged import AveragedStatistics
from dflax.models.cnn import CNN
from dflax.models.convolution import Conv, convolve
from dflax.models.diffusion.noised import Noised, time_features
from dflax.models.diffusion.perceptron import TimeMLP
from dflax.models.diffusion.transformer import AdaptiveBlock, DiT
from dflax.models.diffusion.unet import ResidualBlock, UNet
from dflax.models.mlp import MLP, Linear
from dflax.models.moe.layer import Dispatch, MoE
from dflax.models.moe.products import Owned
from dflax.models.moe.routing import Load, balance_loss, square_loss
from dflax.models.normalization import GroupNorm
from dflax.models.pooling import avg_pool, max_pool
from dflax.models.resnet import BasicBlock, ResNet18
from dflax.models.split.cost import SplitCost, split_cost
from dflax.models.split.lora import apply_lora, lora, orthogonality, rank_mask, svd_lora
from dflax.models.split.low_rank import LowRank, Singular
from dflax.models.split.mlp import split_mlp
from dflax.models.split.split import Exchange, Frozen, Split, Trained, split_gradient
from dflax.models.split.transformer import DegenerateCut, split_transformer
from dflax.models.statistics import recalibrate, recalibrate_on, with_statistics
from dflax.models.transformer import Block, TransformerClassifier, TransformerLM, attention
from dflax.models.two_layer import TwoLayer
from dflax.models.unet import Conv3D, UNet3D, convolve_3d
from dflax.programs.convolutions import rewrite_convolutions

__all__ = [
    "CNN",
    "MLP",
    "AdaptiveBlock",
    "Apply",
    "AveragedStatistics",
    "BasicBlock",
    "Block",
    "Conv",
    "Conv3D",
    "DegenerateCut",
    "DiT",
    "Dispatch",
    "Exchange",
    "Frozen",
    "GroupNorm",
    "Linear",
    "Load",
    "LowRank",
    "MoE",
    "Noised",
    "Owned",
    "ResNet18",
    "ResidualBlock",
    "Singular",
    "Split",
    "SplitCost",
    "TimeMLP",
    "Trained",
    "TransformerClassifier",
    "TransformerLM",
    "TwoLayer",
    "UNet",
    "UNet3D",
    "apply_lora",
    "as_apply",
    "attention",
    "avg_pool",
    "balance_loss",
    "convolve",
    "convolve_3d",
    "lora",
    "max_pool",
    "orthogonality",
    "rank_mask",
    "recalibrate",
    "recalibrate_on",
    "rewrite_convolutions",
    "split_cost",
    "split_gradient",
    "split_mlp",
    "split_transformer",
    "square_loss",
    "svd_lora",
    "time_features",
    "variables",
    "with_statistics",
    "with_variables",
]


def __dir__() -> list[str]:
    return __all__
