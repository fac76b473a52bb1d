"""Where tokens stand: in their sequence, and in its documents where several are packed into one sequence.

Packed documents are parts of a sequence one behind the other. Attention stays inside a document, positions begin anew
in each, and the last token of a document predicts nothing. Batch, Length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

NO_TARGET = -1
"""The target of a token that predicts nothing: it has no loss, and the mean is over all others."""

SEGMENTS, POSITIONS, WEIGHTS = "segments", "positions", "weights"
"""Arrays of a packed batch beside its tokens and targets, BxL: the document of each token, by a number that tells it
from the others of its sequence; the token's position in its document; what its loss counts in a mean over all tokens,
float32 (the step makes these from the targets)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Of each token of a packed batch: its document, by number, and its position in it."""

    segments_BL: jax.Array
    positions_BL: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """`order_L`: where in the sequence each column stands. `documents`: None where a sequence is one document."""

    order_L: jax.Array
    documents: Documents | None = None

    @property
    def positions(self) -> jax.Array:
        """The position of each token in its document: BxL where sequences are packed, else L, for all sequences."""
        return self.order_L if self.documents is None else self.documents.positions_BL

    @property
    def segments_BL(self) -> jax.Array | None:
        """The document of each token; None where a sequence is one document."""
        return None if self.documents is None else self.documents.segments_BL


def documents_of(batch: Mapping[str, jax.Array]) -> Documents | None:
    """The documents of a batch; None where nothing is packed."""
    if SEGMENTS not in batch:
        return None
    return Documents(segments_BL=batch[SEGMENTS], positions_BL=batch[POSITIONS])


def weighted(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """A packed batch with the weights of its losses: 0 where a token predicts nothing, and such that the mean over all
    tokens is that over the tokens that predict one.

    Every slice of the batch has its part of one mean, whatever number of documents lies in it.
    """
    counted = (batch["targets"] != NO_TARGET).astype(jnp.float32)
    return {**batch, WEIGHTS: counted * (counted.size / counted.sum())}


def draw_packed(key: jax.Array, batch: int, seq: int, vocab: int, documents: int) -> dict[str, jax.Array]:
    """Random tokens in so many documents a sequence, of random lengths of one token or more."""
    for_tokens, for_borders = jax.random.split(key)
    tokens = jax.random.randint(for_tokens, (batch, seq), 0, vocab, jnp.int32)
    scores = jax.random.uniform(for_borders, (batch, seq - 1))
    rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1)
    return in_documents(tokens, jnp.pad(rank < documents - 1, ((0, 0), (1, 0))))


def in_documents(tokens_BL: jax.Array, starts_BL: jax.Array) -> dict[str, jax.Array]:
    """A packed batch with these tokens. `starts_BL`: true at the first token of each document, but for the first
    document of a sequence."""
    starts = starts_BL.astype(jnp.int32)
    segments = 1 + jnp.cumsum(starts, axis=1)
    columns = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1], dtype=jnp.int32), tokens_BL.shape)
    positions = columns - jax.lax.cummax(columns * starts, axis=1)
    following = jnp.pad(tokens_BL[:, 1:], ((0, 0), (0, 1)))
    inside = jnp.pad(segments[:, 1:] == segments[:, :-1], ((0, 0), (0, 1)))
    targets = jnp.where(inside, following, jnp.int32(NO_TARGET))
    return {"tokens": tokens_BL, "targets": targets, SEGMENTS: segments, POSITIONS: positions}
