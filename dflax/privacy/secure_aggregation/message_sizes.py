"""How much the protocol of secure aggregation sends."""

from typing import Any, NamedTuple

import numpy as np

from dflax import validation


class MessageBytes(NamedTuple):
    """What one client sends and receives in a round, in bytes; numbers, or arrays of one per client.

    Attributes:
      keys_sent: its two public keys.
      keys_received: those of its neighbours.
      shares_sent: one share of each of its two secrets for each neighbour.
      shares_received: those of its neighbours' secrets.
      vector: its masked message.
      answer: a share of one secret of each neighbour, and of its own.
    """

    keys_sent: Any
    keys_received: Any
    shares_sent: Any
    shares_received: Any
    vector: Any
    answer: Any

    @property
    def total(self) -> Any:
        """Sent and received, of a client that stays to the end."""
        return sum(self)


def message_bytes(
    numbers: int,
    neighbours: Any,
    *,
    modulus_bits: int,
    key_bits: int = 256,
    share_bits: int = 256,
) -> MessageBytes:
    """The sizes of one client's messages, by the formula of Bonawitz et al.

        2 n a_K + (5 n - 4) a_S + d m   bits       n - 1 neighbours, d numbers of m bits, keys of a_K
                                                   bits, shares of a_S

    With 2^10 clients and 2^20 numbers of 16 bits, whose sums need 26, that is 1.73 times the numbers
    alone. Names, signatures and padding are not counted.

    Args:
      numbers: d >= 1 of a message.
      neighbours: how many a client has, >= 0; traceable, also one number per client.
      modulus_bits: m in [2, 32].
      key_bits: a_K >= 1.
      share_bits: a_S >= 1.

    Raises:
      TypeError, ValueError: naming the argument.

    References:
      Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017,
      ePrint 2017/281; Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic Overhead,
      CCS 2020, ePrint 2020/704.
    """
    validation.integer("numbers", numbers, low=1)
    held = validation.array("neighbours", neighbours, kind="integer", low=0, high=2**31 - 2)
    if not np.size(held):
        raise ValueError("neighbours must be one number, or one of each client, got none.")
    validation.integer("modulus_bits", modulus_bits, low=2, high=32)
    validation.integer("key_bits", key_bits, low=1)
    validation.integer("share_bits", share_bits, low=1)
    return MessageBytes(
        keys_sent=2 * key_bits / 8,
        keys_received=held * (2 * key_bits / 8),
        shares_sent=held * (2 * share_bits / 8),
        shares_received=held * (2 * share_bits / 8),
        vector=numbers * modulus_bits / 8,
        answer=(held + 1) * (share_bits / 8),
    )
