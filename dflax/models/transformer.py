"""Pre-norm transformers: a classifier of images or tokens, and a causal language model."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from dflax import validation
from dflax.models.moe.layer import MoE


class TransformerClassifier(nn.Module):
    """Transformer encoder over image patches or tokens; the mean of its outputs is classified.

    Images `[B, H, W, C]` are cut into patches, whose pixels one dense layer embeds; tokens `[B, L]`
    are looked up. Give exactly one of `patch` and `vocabulary`. Positions are learned, so H, W and L
    are those of the inputs it was initialised with.

    Attributes:
      classes: number of outputs, >= 1.
      patch: pixels per side of a patch, divides H and W; None for tokens.
      vocabulary: number of tokens; None for images.
      width: embedding width, divisible by `heads`.
      depth: number of blocks, >= 1.
      heads: attention heads, >= 1.
      dropout: probability in [0, 1) of dropping an entry, in training.
      dtype: dtype of the computation; None means that of the parameters, float32.

    References:
      Dosovitskiy et al., An Image is Worth 16x16 Words, arXiv 2010.11929.
    """

    classes: int
    patch: int | None = None
    vocabulary: int | None = None
    width: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("classes", self.classes, low=1)
        validation.dtype("dtype", self.dtype)
        if (self.patch is None) == (self.vocabulary is None):
            raise ValueError(
                "exactly one of patch (images) and vocabulary (tokens) must be given, got patch = "
                f"{validation.shown(self.patch)} and vocabulary = {validation.shown(self.vocabulary)}."
            )
        name = "patch" if self.vocabulary is None else "vocabulary"
        validation.integer(name, getattr(self, name), low=1)
        check_blocks(self.width, self.depth, self.heads, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"] | Int[Array, "B L"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Logits; `train` switches dropout on."""
        if self.vocabulary is not None:
            _require_tokens("x", x)
            x = nn.Embed(self.vocabulary, self.width, dtype=self.dtype, name="embedding")(x)
        elif self.patch is not None:
            x = nn.Dense(self.width, dtype=self.dtype, name="embedding")(patches(x, self.patch))
        positions = self.param("positions", nn.initializers.normal(0.02), (x.shape[1], self.width))
        if positions.shape[0] != x.shape[1]:
            raise ValueError(
                f"inputs must have the {positions.shape[0]} positions of initialisation, got "
                f"{x.shape[1]}. Crop or pad them."
            )
        x = nn.Dropout(self.dropout, deterministic=not train)(x + positions.astype(x.dtype))
        for _ in range(self.depth):
            x = Block(self.heads, dropout=self.dropout, dtype=self.dtype)(x, train)
        x = jnp.mean(nn.LayerNorm(dtype=self.dtype)(x), axis=1)
        return nn.Dense(self.classes, dtype=self.dtype, name="head")(x)


class TransformerLM(nn.Module):
    """Causal language model: logits at position t depend on the tokens 0, ..., t alone.

    Attributes:
      vocabulary: number of tokens, >= 1.
      length: longest sequence it takes, >= 1.
      width: embedding width, divisible by `heads`.
      depth: number of blocks, >= 1.
      heads: attention heads, >= 1.
      dropout: probability in [0, 1) of dropping an entry, in training.
      tied: whether the logits are products with the embeddings, rather than a layer of their own.
      mixture: a `MoE` that stands, with weights of its own, for the dense layers of every block, as
        `Block_0/experts`; None for dense layers.
      scan_blocks: whether one loop takes all blocks, whose parameters then lie stacked, `[depth, ...]`
        under "blocks" in the place of `Block_0`, `Block_1`, ...: a block is compiled once, not `depth`
        times. The logits are the same. It takes no `mixture`, whose experts are the leading axis.
      dtype: dtype of the computation; None means that of the parameters, float32.

    References:
      Vaswani et al., Attention Is All You Need, arXiv 1706.03762.
      Press & Wolf, Using the Output Embedding to Improve Language Models, arXiv 1608.05859.
    """

    vocabulary: int
    length: int = 128
    width: int = 64
    depth: int = 2
    heads: int = 4
    dropout: float = 0.0
    tied: bool = True
    mixture: MoE | None = None
    scan_blocks: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("vocabulary", self.vocabulary, low=1)
        validation.integer("length", self.length, low=1)
        validation.flag("tied", self.tied)
        _validate_mixture(self.mixture)
        validation.flag("scan_blocks", self.scan_blocks)
        if self.scan_blocks and self.mixture is not None:
            raise ValueError(
                "scan_blocks must be False with a mixture, whose experts are the leading axis of its "
                "parameters, got True. Leave one of them out."
            )
        validation.dtype("dtype", self.dtype)
        check_blocks(self.width, self.depth, self.heads, self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"], train: bool = False) -> Float[Array, "B L V"]:
        """Logits of the token that follows each position; `train` switches dropout on."""
        _require_tokens("tokens", tokens)
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise ValueError(
                f"tokens must have shape [B, L] with L <= length = {self.length}, got "
                f"{tokens.shape}. Raise length=."
            )
        # Logits of order one at the start, also where the head is tied to the embeddings.
        embedding = nn.Embed(
            self.vocabulary,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="embedding",
        )
        positions = self.param("positions", nn.initializers.normal(0.02), (self.length, self.width))
        x = embedding(tokens)
        x = x + positions[: tokens.shape[1]].astype(x.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        options = {"causal": True, "dropout": self.dropout, "dtype": self.dtype}
        if self.scan_blocks:
            x = in_a_loop(Block(self.heads, **options, name="blocks"), self.depth, x, train)
        else:
            for _ in range(self.depth):
                x = Block(self.heads, mixture=self.mixture, **options)(x, train)
        x = nn.LayerNorm(dtype=self.dtype)(x)
        if self.tied:
            return embedding.attend(x)
        return nn.Dense(self.vocabulary, use_bias=False, dtype=self.dtype, name="head")(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + dense(gelu(dense(norm(x)))) with a fourfold hidden width.

    Attributes:
      heads: attention heads; divides the width.
      causal: whether a position sees only itself and earlier ones.
      dropout: probability of dropping an entry of what is added to x.
      mixture: a `MoE` in the place of the two dense layers, named "experts"; None for these.
      dtype: dtype of the computation.
    """

    heads: int
    causal: bool = False
    dropout: float = 0.0
    mixture: MoE | None = None
    dtype: Any = None

    def __post_init__(self) -> None:
        validation.integer("heads", self.heads, low=1)
        validation.flag("causal", self.causal)
        validation.probability("dropout", self.dropout, high_open=True)
        _validate_mixture(self.mixture)
        validation.dtype("dtype", self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"], train: bool = False) -> Float[Array, "B L D"]:
        """The block's output."""
        width = x.shape[-1]
        # One product for queries, keys and values: under a client axis every product is a batched
        # one, and few wide ones are faster than many narrow ones.
        joint = nn.Dense(3 * width, dtype=self.dtype, name="query_key_value")(
            nn.LayerNorm(dtype=self.dtype)(x)
        )
        joint = joint.reshape(*x.shape[:2], 3, self.heads, width // self.heads)
        mixed = attention(joint[:, :, 0], joint[:, :, 1], joint[:, :, 2], causal=self.causal)
        mixed = nn.Dense(width, dtype=self.dtype, name="projection")(mixed.reshape(x.shape))
        x = x + nn.Dropout(self.dropout, deterministic=not train)(mixed)
        hidden = nn.LayerNorm(dtype=self.dtype)(x)
        if self.mixture is not None:
            hidden = self.mixture.copy(parent=self, name="experts")(hidden)
        else:
            hidden = nn.Dense(4 * width, dtype=self.dtype)(hidden)
            hidden = nn.Dense(width, dtype=self.dtype)(nn.gelu(hidden))
        return x + nn.Dropout(self.dropout, deterministic=not train)(hidden)


def in_a_loop(
    block: Block, depth: int, x: Float[Array, "B L D"], train: bool
) -> Float[Array, "B L D"]:
    """`depth` blocks like this one after another, their parameters stacked along a leading axis."""
    loop = nn.scan(
        lambda block, x, _: (block(x, train), None),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=depth,
    )
    return loop(block, x, None)[0]


def attention(
    query: Float[Array, "B L H D"],
    key: Float[Array, "B M H D"],
    value: Float[Array, "B M H D"],
    *,
    causal: bool = False,
) -> Float[Array, "B L H D"]:
    """softmax(query key^T / sqrt(D)) value per head; `causal` lets position t see m <= t only."""
    scores = jnp.einsum("blhd,bmhd->bhlm", query, key) / query.shape[-1] ** 0.5
    if causal:
        visible = jnp.tri(query.shape[1], key.shape[1], dtype=bool)
        scores = jnp.where(visible, scores, jnp.finfo(scores.dtype).min)
    # Softmax in float32 at least: half precision loses the sum over long sequences.
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    weights = jax.nn.softmax(wide, axis=-1).astype(value.dtype)
    return jnp.einsum("bhlm,bmhd->blhd", weights, value)


def patches(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B L P"]:
    """The pixels of square patches, row by row."""
    if images.ndim != 4 or images.shape[1] % size or images.shape[2] % size:
        raise ValueError(
            f"inputs must be images [B, H, W, C] whose sides patch = {size} divides, got shape "
            f"{images.shape}."
        )
    count, height, width, channels = images.shape
    cut = images.reshape(count, height // size, size, width // size, size, channels)
    return cut.swapaxes(2, 3).reshape(count, -1, size * size * channels)


def _require_tokens(name: str, tokens: Int[Array, "B L"]) -> None:
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"{name} must be token numbers (integers), got {tokens.dtype} {tokens.shape}. Cast them "
            "with astype(jnp.int32)."
        )


def _validate_mixture(mixture: MoE | None) -> None:
    if mixture is not None:
        validation.instance("mixture", mixture, MoE, "For example dflax.models.MoE(8, active=2).")


def check_blocks(width: int, depth: int, heads: int, dropout: float) -> None:
    """Refuse sizes of a transformer that do not fit together."""
    validation.integer("width", width, low=1)
    validation.integer("depth", depth, low=1)
    validation.integer("heads", heads, low=1)
    validation.probability("dropout", dropout, high_open=True)
    if width % heads:
        raise ValueError(f"heads must divide width = {width}, got {heads}.")
